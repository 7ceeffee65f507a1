# Sourced by benches/run: two servers that see each other, each with a database `presence`; the first has the members.

nodes=("$work/a" "$work/b")
on() { # NUMBER COMMAND...
    db=${nodes[$1]} "${@:2}"
}
# What a server shows of the first one's members: how many, and a checksum of them.
shown() {
    on "$1" sql presence -c "set enable_sort = off; select count(*), coalesce(sum(pg_catalog.hashtextextended(room || ' ' || member_id || ' ' || state, 0)), 0)
        from presence.online where node = 'a'"
}
until_alike() {
    local here
    here=$(shown 0)
    until [ "$(shown 1)" = "$here" ]; do sleep 0.05; done
}
now() { date +%s.%N; }

if any_wanted 31 32 33; then
    say "starting two servers that see each other"
    for number in 0 1; do
        scripts/cluster start "${nodes[number]}" -o presence.max_members=300000 -o presence.member_ids=any -o presence.max_per_user=0 \
            -o max_connections=250 -o shared_buffers=1GB -o max_wal_size=4GB -o checkpoint_timeout=1h -o wal_level=logical \
            -o wal_retrieve_retry_interval=200ms -o presence.node_name="$([ $number = 0 ] && echo a || echo b)"
        on $number sql postgres -c "create role app login; create role reader login; create role web_a; create role web_b" -c "create database presence"
        on $number sql presence -f benches/presence.sql >/dev/null
        on $number sql presence -v rooms=$rooms -f benches/common.sql
    done
    on 0 sql presence -c "create publication presence for table presence.shared where (node = 'a'), presence.node where (node = 'a')
        with (publish = 'insert, update, delete')"
    on 1 sql presence -c "create subscription presence connection 'host=${nodes[0]} dbname=presence user=postgres'
        publication presence with (streaming = on)" 2>/dev/null
    on 0 sql presence -c "call fill(null, '', $((rooms * 100)), '6 hours')"
    on 0 flush
    until_alike
fi

if wanted 31 "from one server to a listener of the other"; then
    db=${nodes[1]} hold presence '' 'select presence.listen()' '"event":"update"'
    seconds=$((seconds * 3)) on 0 bench presence presence/upsert 8 app -R 1000 >/dev/null
    on 0 flush
    sleep 1
    release
    row 31 "two servers: 1,000 changes a second on one, from the change to a listener of all rooms on the other" \
        "${heard[0]} events: p50 ${heard[1]} ms, p99 ${heard[2]} ms, the longest ${heard[3]} ms" \
        "p50 ≤ 50 ms, p99 ≤ 200 ms" "${heard[1]} <= 50 && ${heard[2]} <= 200"
fi

if wanted 33 "after a partition"; then
    away=$((seconds * 12))
    on 1 sql presence -c "alter subscription presence disable"
    seconds=$away on 0 bench presence presence/upsert 8 app -R 1000 >/dev/null
    began=$(now)
    on 1 sql presence -c "alter subscription presence enable"
    until_alike
    alike=$(calc "$(now) - $began" 1)
    on 1 flush
    told=$(calc "$(now) - $began" 1)
    row 33 "two servers, 100,000 members: nothing is heard for $away s, while 1,000 a second change" \
        "both show the same $alike s after the subscription is enabled, and listeners have been told after $told s" "≤ 10 s" "$alike <= 10"
fi

if wanted 32 "a dead server"; then
    scripts/cluster stop "${nodes[0]}" immediate
    began=$(now)
    until [ "$(on 1 sql presence -c "select count(*) from presence.list(max_rows => 1)")" = 0 ]; do sleep 0.05; done
    hidden=$(calc "$(now) - $began" 1)
    row 32 "two servers: one is killed; until the other shows none of its 100,000 members" \
        "$hidden s, with presence.node_timeout = 10 s" "≤ 11 s" "$hidden <= 11"
fi

if any_wanted 31 32 33; then for number in 0 1; do scripts/cluster remove "${nodes[number]}"; done; fi
