# Sourced by the demos: each player is a psql on the server in $dir, fed through a named pipe.
#
#   enters NAME [USER]    a player connects
#   tell NAME SQL         show the player's SQL, run it, and show the answer
#   until_heard TEXT      wait for an event that contains it
#   vanish                all connections are lost, without notice

tmp=$(mktemp -d)
mkfifo "$tmp/done"
exec {done}<>"$tmp/done"
declare -A to=() pid=() colour=()
if [ -n "$plain" ]; then colour=([alice]=$'\e[35m' [bob]=$'\e[36m' [carol]=$'\e[33m'); fi

leave_stage() {
    set +e
    stop_listening
    local name
    for name in "${!to[@]}"; do printf '\\q\n' >&"${to[$name]}"; done
    rm -rf "$tmp"
}
trap leave_stage EXIT

# Prints a notification's payload on one line. PostgreSQL parses the JSON.
pretty() { # PAYLOAD
    "$bin/psql" -XqAt -h "$dir" -U postgres -v event="$1" demo <<'SQL'
select concat_ws('  ', e->>'event', concat_ws('/', e->>'member_id', nullif(e->>'connection_id', '')),
                 e->>'status', nullif(e->>'state', '{}'), 'reason: ' || (e->>'reason'),
                 'connections: ' || (e->>'connections'))
  from (select :'event'::jsonb) as payload(e);
SQL
}

# Shows what a player's psql prints. A `~` means that a statement is done.
show() { # NAME USER
    local line payload
    while IFS= read -r line; do
        if [ -e "$tmp/vanished" ]; then continue; fi
        case $line in
            '~') echo >&"$done" ;;
            'Asynchronous notification'*'"event":'*'"relisten"'*)
                # Listen again, as every client should: what the player may listen to has changed.
                printf "select presence.listen('lobby') \\\\g /dev/null\n" >"$tmp/$1"
                ;;
            'Asynchronous notification'*)
                payload=${line#*with payload \"}
                payload=${payload%\" received from server process*}
                payload=$(pretty "$payload")
                printf '%s%8s hears: %s%s\n' "${colour[$2]-}" "$2" "$payload" "$plain"
                echo "$payload" >>"$tmp/heard"
                ;;
            *)
                case $line in ERROR:* | FATAL:* | psql:*) touch "$tmp/failed" ;; esac
                printf '%s%10s%s%s\n' "$dim" '' "$line" "$plain"
                ;;
        esac
    done
}

enters() { # NAME [USER]
    local user=${2:-$1} fd
    rm -f "$tmp/$1"
    mkfifo "$tmp/$1"
    exec {fd}<>"$tmp/$1"
    "$bin/psql" -XqAt -F ' | ' -h "$dir" -U "$user" demo <"$tmp/$1" > >(show "$1" "$user") 2>&1 &
    to[$1]=$fd pid[$1]=$!
    disown # bash need not report on it
}

# psql shows notifications only after a statement, so the listening players run an empty query all the time.
listening() { # NAME...
    while sleep 0.1; do
        for listener; do echo 'select where false;' >&"${to[$listener]}"; done
    done &
    poll=$!
}

stop_listening() {
    [ -z "${poll:-}" ] || kill "$poll"
    poll=''
}

vanish() {
    stop_listening
    touch "$tmp/vanished"
    kill -9 "${pid[@]}" 2>/dev/null || true
    sleep 0.3
    to=() pid=()
    rm "$tmp/vanished"
}

scene() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; pause 1; }

pause() { if [ -n "${DEMO_FAST:-}" ]; then sleep 0.3; else sleep "$1"; fi; }

tell() { # NAME SQL: show it, run it, wait until it is done, leave time to hear and to read
    printf '%s%8s=>%s %s\n' "${colour[$1]-}" "$1" "$plain" "${2% \\g*}"
    printf '%s;\n\\echo ~\n' "$2" >&"${to[$1]}"
    read -r -t 30 -u "$done" || die "$1 got no answer; the server's log is $dir/log"
    pause 1.2
}

until_heard() { # TEXT: wait for an event that contains it
    for _ in {1..80}; do
        if grep -qs -- "$1" "$tmp/heard"; then pause 1.2; return; fi
        sleep 0.1
    done
    die "nobody heard of '$1'; the server's log is $dir/log"
}
