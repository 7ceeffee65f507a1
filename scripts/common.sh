# Sourced by the other scripts: which PostgreSQL, as which user, and how to say things.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else bold='' dim='' red='' green='' plain=''; fi

die() { printf '%s%s%s\n' "$red" "$*" "$plain" >&2; exit 1; }

PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin

# A pg_config may come from a client package alone: count only those with a server and its headers.
is_complete() {
    [ -x "$1" ] && [ -x "$("$1" --bindir)/postgres" ] && [ -e "$("$1" --includedir-server)/postgres.h" ]
}

# Unless told: the first that is complete, else where `scripts/deps` will put one.
PG_CONFIG=${PG_CONFIG:-${PRESENCE_PG_CONFIG:-}}
if [ -z "$PG_CONFIG" ]; then
    for PG_CONFIG in /usr/lib/postgresql/{15,16,17,18}/bin/pg_config "$(command -v pg_config || true)"; do
        if is_complete "$PG_CONFIG"; then break; fi
        PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config
    done
fi
export PG_CONFIG PRESENCE_PG_CONFIG=$PG_CONFIG

# The cargo feature of that PostgreSQL: pg15 to pg18.
pg_feature() {
    local major
    major=$("$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
    case $major in
        15 | 16 | 17 | 18) echo "pg$major" ;;
        *) die "PostgreSQL $major ($PG_CONFIG): presence_ext supports 15 to 18" ;;
    esac
}

# pgrx is told which server that is by this variable, or by cargo-pgrx, where somebody has set that up for this server. Cargo
# builds all anew when the variable changes, so that `cargo test` without it and these scripts have to agree.
pgrx_config=${PGRX_HOME:-${HOME:-}/.pgrx}/config.toml
if ! grep -qsF "\"$PG_CONFIG\"" "$pgrx_config"; then export PGRX_PG_CONFIG_PATH=$PG_CONFIG; fi

# The tests in the server build by cargo-pgrx, which links with flags of its own to keep the section with the schema. On x86-64
# the section survives without them, and nothing is built twice.
if [ "$(uname -m)" = x86_64 ]; then export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1; fi

# PostgreSQL refuses to run as root: root's clusters belong to the user postgres.
if [ "$(id -u)" = 0 ]; then
    as_root() { "$@"; }
    as_server() { runuser -u postgres -- "$@"; }
else
    as_root() { sudo "$@"; }
    as_server() { "$@"; }
fi

# A new directory in which the server's user may have directories of its own. Short: sockets live below it.
private_dir() {
    local dir
    dir=$(mktemp -d "${TMPDIR:-/tmp}/presence.XXXXXX")
    chmod 711 "$dir"
    echo "$dir"
}
