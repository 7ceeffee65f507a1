# Sourced by benches/run: what calls that write cost.

if wanted 1 "heartbeat"; then
    compare floor "bench presence floor/bind 16 app" ours "bench presence presence/heartbeat 16 app" \
        rival "bench rival rival/heartbeat 16 app" redis "redis 16 1 zadd room __rand_int__ member:__rand_int__"
    a=$(ratio ours floor) b=$(ratio ours rival)
    row 1 "heartbeat of random members of 100,000, 16 clients" \
        "$(per_s ${of[ours]}): $(calc $a) × the SELECT ($(per_s ${of[floor]})), $(calc $b) × the rival ($(per_s ${of[rival]})), $(calc "$(ratio ours redis)") × Redis ZADD ($(per_s ${of[redis]}))" \
        "≥ 0.92 × a SELECT of the same parameters, ≥ 2.2 × the rival's UPDATE" "$a >= 0.92 && $b >= 2.2"
fi

if wanted 2 "heartbeat_many"; then
    compare ours "bench presence presence/heartbeat_many 1 app" rival "bench rival rival/heartbeat_many 1 app" \
        redis "redis 1 1000 zadd room __rand_int__ member:__rand_int__"
    many=$(calc "${of[ours]} * 1000" 0) a=$(ratio ours rival) b=$(calc "$(ratio ours redis) * 1000")
    row 2 "heartbeat_many of 1,000 random members, 1 client" \
        "$(per_s $many): $(calc $a 1) × the rival's batched UPDATE ($(per_s $(calc "${of[rival]} * 1000" 0))), $(calc $b 1) × Redis pipelined ZADD ($(per_s ${of[redis]}))" \
        "≥ 2 M members/s, ≥ 20 × the rival, ≥ 4 × Redis" "$many >= 2e6 && $a >= 20 && ($b >= 4 || \"$b\" == \"nan\")"
fi

if wanted 3 "upsert"; then
    compare ours "bench presence presence/upsert 8 app" rival "bench rival rival/upsert 8 app" \
        redis "redis 8 1 set member:__rand_int__ {\"x\":__rand_int__} ex 3600"
    a=$(ratio ours rival)
    row 3 "upsert with a changed state, 8 clients, nobody listens; ours under row-level security" \
        "$(per_s ${of[ours]}): $(calc $a) × the rival ($(per_s ${of[rival]})); Redis SET EX $(per_s ${of[redis]})" \
        "≥ 2.2 × the rival" "$a >= 2.2"
fi

with_listeners() { # DATABASE SCRIPT, then what the client takes
    local database=$1 script=$2 tps
    shift 2
    hold "$database" "$@"
    tps=$(bench "$database" "$script" 8 app)
    release
    echo "$tps"
}
if wanted 4 "upsert with listeners"; then
    elsewhere="select presence.listen('elsewhere-\$i')"
    compare ours 'with_listeners presence presence/upsert "$elsewhere"' \
        rival 'with_listeners rival rival/upsert "listen elsewhere"' \
        ours_heard 'with_listeners presence presence/upsert "$elsewhere" "select presence.listen()"' \
        rival_heard 'with_listeners rival rival/upsert "listen elsewhere" "listen presence"' \
        redis "redis 8 1 publish room {\"x\":__rand_int__}"
    a=$(ratio ours rival) b=$(ratio ours_heard rival_heard)
    row 4 "the same with 100 idle listeners; and one of them hears everything" \
        "$(per_s ${of[ours]}): $(calc $a 1) × the rival ($(per_s ${of[rival]})); heard: $(per_s ${of[ours_heard]}), $(calc $b 1) × ($(per_s ${of[rival_heard]})); Redis PUBLISH $(per_s ${of[redis]})" \
        "≥ 20 × the rival; ≥ 15 ×" "$a >= 20 && $b >= 15"
fi

if wanted 5 "identical upsert"; then
    for ((room = 1; room <= rooms; room += 50)); do
        sql presence -U app -c "update presence.member set state = '{\"x\": 1}'
                                where room in (select g::text from generate_series($room, $room + 49) g)"
        flush
    done
    # Only what it returns: such a row of a plain table, by its key.
    sql presence -c "create unlogged table plain_online as select * from presence.online;
        create unique index on plain_online (room, member_id, connection_id); grant select on plain_online to app" \
        -c "vacuum analyze plain_online"
    compare floor "bench presence floor/select_1 8 app" ours "bench presence presence/identical 8 app" \
        row "bench presence floor/row 8 app"
    sql presence -c "drop table plain_online"
    a=$(ratio ours floor)
    row 5 "upsert with an identical state, 8 clients" \
        "$(per_s ${of[ours]}): $(calc $a) × SELECT 1 ($(per_s ${of[floor]})), $(calc "$(ratio ours row)") × a SELECT of a plain table's row as large ($(per_s ${of[row]}))" \
        "≥ 0.6 × SELECT 1" "$a >= 0.6"
fi

# A transaction's cost in processor time of the server, in microseconds.
cost() { # what `bench` takes
    local before tps
    before=$(server_cpu)
    tps=$(bench "$@")
    sleep 0.2
    calc "($(server_cpu) - $before) / ($tps * $seconds)" 1
}
if wanted 6 "inside a business transaction"; then
    commit=$(calc "1000 / $(bench presence floor/business 1 app)" 2)
    # What a change touches here, touched by plain SQL: a row of the same width with the same indexes, and a row of the log.
    sql presence -c "
        create unlogged table twin (like presence.member including all) with (fillfactor = 50,
            autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
        create unlogged table twin_event (like presence.event);
        create index on twin_event (seq); create index on twin_event (room, seq); create sequence twin_seq cache 100;
        grant select, insert, update on twin, twin_event to app; grant usage on sequence twin_seq to app;
        insert into twin select * from presence.member" -c "vacuum analyze twin"
    sql rival -c "alter table presence disable trigger notify"
    compare alone "cost presence floor/business 8 app" ours "cost presence presence/business 8 app" \
        rival "cost rival rival/business 8 app" twin "cost presence floor/business_twin 8 app"
    sql rival -c "alter table presence enable trigger notify"
    sql presence -c "drop table twin, twin_event"
    ours=$(calc "${of[ours]} - ${of[alone]}" 0) rival=$(calc "${of[rival]} - ${of[alone]}" 0)
    twin=$(calc "${of[twin]} - ${of[alone]}" 0)
    row 6 "a logged INSERT and one upsert, 8 clients; a commit takes $commit ms" \
        "adds $ours µs of processor time, with its event; the rival without notify adds $rival µs; plain SQL that touches the same rows, $twin µs" \
        "≤ 1.15 × the rival, or else ≤ 1.15 × plain SQL" "$ours <= 1.15 * $rival || $ours <= 1.15 * $twin"
fi

if wanted 16 "as PostgREST does"; then
    compare ours "bench presence presence/postgrest 8 authenticator" rival "bench rival rival/postgrest 8 authenticator" \
        floor "bench presence floor/postgrest 8 authenticator"
    a=$(ratio ours rival)
    row 16 "SET LOCAL ROLE, claims, upsert, COMMIT; two roles in turn on one connection, 8 clients" \
        "$(calc $a) × the rival in the same frame ($(per_s ${of[rival]}) of two transactions); the frame without a call $(calc "$(ratio floor rival)") ×" "≥ 1.1 × the rival" "$a >= 1.1"
fi

# Transactions per second by one client that runs this many; each takes the next number.
in_turn() { # DATABASE SCRIPT USER TRANSACTIONS
    local out
    out=$(cd "$work" && as_server "$bin/pgbench" -h "$db" -U "$3" -n -M prepared -D n=0 -c 1 -t "$4" \
        -f "$scripts/$2.sql" "$1" 2>&1) || die "pgbench $2: $out"
    sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out"
}
if wanted 22 "bulk verbs"; then
    sql presence -c "create table bulk as select id,
            jsonb_agg(key || jsonb_build_object('user_id', 'u' || m, 'ttl', '6 hours', 'state', jsonb '{\"x\": 12345, \"tool\": \"pen\"}')) as enter,
            jsonb_agg(key || jsonb_build_object('user_id', 'u' || m, 'ttl', '6 hours', 'state', jsonb '{\"x\": 23456, \"tool\": \"pen\"}')) as change,
            jsonb_agg(key || jsonb '{\"patch\": {\"x\": 54321}}') as patch, jsonb_agg(key) as leave
        from generate_series(1, 200) id, generate_series(1, 500) m,
            lateral jsonb_build_object('room', 'bulk-' || id, 'member_id', 'm' || m) key group by id" \
        -c "create unique index on bulk (id)"
    calls=$((seconds * 8)) ones=$((seconds * 1000))
    declare -A bulk=()
    for ((round = 1; round <= rounds; round++)); do
        for verb in enter change patch leave; do
            many=$(in_turn presence presence/bulk_$verb postgres $calls)
            flush
            bulk[$verb]+="$many $(in_turn rival rival/bulk_$verb app $ones)"$'\n'
        done
    done
    measured='' least=1000
    for verb in enter change patch leave; do
        case $verb in
            enter) name='upsert_many, all enter' ;; change) name='upsert_many, all change' ;;
            patch) name=update_many ;; leave) name=delete_many ;;
        esac
        a=$(sed '/^$/d' <<<"${bulk[$verb]}" | awk '{ print $1 * 500 / $2 }' | median)
        many=$(sed '/^$/d' <<<"${bulk[$verb]}" | awk '{ print $1 * 500 }' | median)
        measured+="${measured:+; }$name $(calc $a 1) × ($(per_s $many))"
        least=$(calc "$a < $least ? $a : $least" 3)
    done
    row 22 "500 members a call, one client: members a second beside the rival's, one by one" "$measured" \
        "≥ 6 × the rival" "$least >= 6"
fi

if wanted 12 "1,000,000 heartbeats"; then
    flush
    sql postgres -c "alter system set autovacuum = off" -c "select pg_reload_conf()" >/dev/null
    position() {
        sql presence -c "select pg_stat_clear_snapshot()" -c "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn,
            pg_snapshot_xmax(pg_current_snapshot()), (select n_dead_tup from pg_stat_user_tables
            where relid = 'presence.member'::regclass)" -F ' ' | tail -n 1
    }
    # Wait until nothing else writes: the times of last_seen are written later. The server may write for itself in between
    # (running transactions for standbys, every 15 s), so one try of three without that is enough.
    for _ in {1..30}; do
        before=$(position)
        sleep 2.5
        after=$(position)
        if [ "${before% *}" = "${after% *}" ]; then break; fi
    done
    for _ in {1..3}; do
        before=$(position)
        sql presence -U app -c "select count(*) from generate_series(1, 10), batch b,
            lateral presence.heartbeat_many(b.rooms, b.members)" >/dev/null
        sleep 1
        read -r wal xids dead <<<"$(paste -d ' ' <(echo "$before") <(position) | awk '{ print $4 - $1, $5 - $2, ($6 > $3 ? $6 - $3 : 0) }')"
        if [ "$wal $xids $dead" = "0 0 0" ]; then break; fi
    done
    sql postgres -c "alter system reset autovacuum" -c "select pg_reload_conf()" >/dev/null
    row 12 "1,000,000 heartbeats" "$wal bytes of WAL, $xids transaction ids, $dead dead tuples" "0, 0, 0" \
        "$wal == 0 && $xids == 0 && $dead <= 0"
fi
