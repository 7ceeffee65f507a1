# Sourced by benches/run: how things are measured.

sql() { # DATABASE, then what psql takes
    local database=$1
    shift
    scripts/cluster psql "$db" -X -q -At -v ON_ERROR_STOP=1 -d "$database" "$@"
}

# pgbench as the server's user, who owns the socket. Prints transactions per second.
bench() { # DATABASE SCRIPT CLIENTS USER [OPTION]...
    local database=$1 script=$2 clients=$3 user=$4 out
    shift 4
    out=$(cd "$work" && as_server "$bin/pgbench" -h "$db" -U "$user" -n -M prepared -D rooms="$rooms" -c "$clients" \
        -j $((clients < 2 ? 1 : 2)) -T "$seconds" -f "$scripts/$script.sql" "$@" "$database" 2>&1) ||
        die "pgbench $script: $out"
    sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out"
}

# Requests per second, as measured by Redis's own tool.
redis() { # CLIENTS PIPELINE COMMAND...
    local clients=$1 pipeline=$2
    shift 2
    if [ -z "${redis_pid:-}" ]; then echo nan; return; fi
    redis-benchmark -s "$work/redis" --csv -c "$clients" -P "$pipeline" -r 100000 \
        -n $((seconds * (pipeline > 1 ? 500000 : 50000))) "$@" 2>/dev/null | awk -F '"' 'END { print $4 }'
}

median() { sort -g | awk '{ a[NR] = $1 } END { print NR ? (NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2) : "nan" }'; }
calc() { awk "BEGIN { printf \"%.${2:-2}f\", $1 }" 2>/dev/null || echo nan; }
holds() { awk "BEGIN { exit !($1) }"; }

# Runs several commands in turn, for some rounds after a warm-up (round 0; not when it must be quick). ${of[NAME]} is the
# median of each, and `ratio A B` the median of the rounds' ratios. There are many short rounds, because the load from a
# virtual machine's neighbours changes within seconds and should affect all compared commands alike.
declare -A of samples
compare() { # NAME 'COMMAND'...
    local round name command number seconds=$slice
    samples=() of=()
    for ((round = warm_up; round <= rounds; round++)); do
        for ((number = 1; number < $#; number += 2)); do
            name=${!number} command=$((number + 1))
            command=${!command}
            if [ "$round" = 0 ]; then
                if [[ $command =~ ^(in_named )?bench ]]; then seconds=1 eval "$command" >/dev/null; fi
            else
                samples[$name]+="$(eval "$command")"$'\n'
            fi
        done
    done
    for name in "${!samples[@]}"; do of[$name]=$(sed '/^$/d' <<<"${samples[$name]}" | median); done
}
ratio() { # A B
    paste -d ' ' <(sed '/^$/d' <<<"${samples[$1]}") <(sed '/^$/d' <<<"${samples[$2]}") |
        awk '{ print ($2 > 0 ? $1 / $2 : "nan") }' | median
}

# Processor time of the server so far, in microseconds: of its processes and of those that have ended.
server_cpu() {
    local postmaster
    postmaster=$(head -n 1 "$db/data/postmaster.pid")
    { cat /proc/"$postmaster"/stat; for pid in $(pgrep -P "$postmaster"); do cat /proc/"$pid"/stat 2>/dev/null || true; done; } |
        awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); own += $12 + $13; if (NR == 1) own += $14 + $15 }
                                        END { printf "%d", own * 1e6 / hz }'
}
worker_cpu() { # seconds
    awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / hz }' /proc/"$1"/stat
}

# Samples the private memory of a process, in kB, while something runs.
watch_memory() { # PID
    watched=$1 memory_before=$(memory_of "$1")
    touch "$work/watching"
    # Without the listeners' standard input (hold), which would never end otherwise.
    (exec 7>&-; while [ -e "$work/watching" ]; do memory_of "$watched"; sleep 0.02; done) >"$work/memory" 2>/dev/null &
    watching=$!
}
memory_of() { awk '/^RssAnon:/ { print $2 }' "/proc/$1/status"; }
memory_grown() { # in MB, at most
    rm "$work/watching"
    wait $watching || true
    sort -n "$work/memory" | tail -n 1 | awk -v before="$memory_before" '{ printf "%.0f", ($1 - before) / 1024 }'
}

# Runs listeners (client/src/main.rs) until `release`, which sets ${heard[@]} to what they print: the number of
# notifications, and their p50, p99 and longest delay in ms.
hold() { # DATABASE, then what the client takes
    local database=$1
    shift
    rm -f "$work/in" "$work/out"
    mkfifo "$work/in"
    IDLE=${idle:-100} as_server "$client" "host=$db user=postgres dbname=$database" "$@" <"$work/in" >"$work/out" &
    held=$!
    exec 7>"$work/in"
    for _ in {1..200}; do if grep -qs ready "$work/out"; then break; fi; sleep 0.05; done
    grep -q ready "$work/out" || die "the listeners do not come up"
}
release() {
    exec 7>&-
    wait "$held" || die "the listeners died"
    read -ra heard <<<"$(tail -n 1 "$work/out")"
}
health() { sql presence -c "select $1 from presence.health"; }
flush() { sql presence -c "select presence.wait_for_flush('60 s')" >/dev/null; }
