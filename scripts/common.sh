# Sourced by the other scripts: which PostgreSQL to use, as which user, and how to print messages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else bold='' dim='' red='' green='' plain=''; fi

die() { printf '%s%s%s\n' "$red" "$*" "$plain" >&2; exit 1; }

PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin

# A pg_config may come from a client package alone: accept only those with a server and its headers.
is_complete() {
    [ -x "$1" ] && [ -x "$("$1" --bindir)/postgres" ] && [ -e "$("$1" --includedir-server)/postgres.h" ]
}

# By default the first that is complete, else the place where `scripts/deps` will put one.
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

# pgrx learns which server that is from this variable, or from cargo-pgrx if that has been set up for this server. Cargo
# rebuilds everything when the variable changes, so `cargo test` without it and these scripts have to agree.
pgrx_config=${PGRX_HOME:-${HOME:-}/.pgrx}/config.toml
if ! grep -qsF "\"$PG_CONFIG\"" "$pgrx_config"; then export PGRX_PG_CONFIG_PATH=$PG_CONFIG; fi

# The in-server tests are built by cargo-pgrx, which links with extra flags to keep the section with the schema. On
# x86-64 the section survives without them, so nothing has to be built twice.
if [ "$(uname -m)" = x86_64 ]; then export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1; fi

# PostgreSQL refuses to run as root: root's clusters belong to the user postgres.
if [ "$(id -u)" = 0 ]; then
    as_root() { "$@"; }
    as_server() { runuser -u postgres -- "$@"; }
else
    as_root() { sudo "$@"; }
    as_server() { "$@"; }
fi

# Makes a directory in which the server's user may have directories of its own. Its path is short, because sockets are
# created below it.
private_dir() {
    local dir
    dir=$(mktemp -d "${TMPDIR:-/tmp}/presence.XXXXXX")
    chmod 711 "$dir"
    echo "$dir"
}
