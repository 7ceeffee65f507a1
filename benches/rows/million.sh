# Sourced by benches/run: a million members. It comes last because of what it leaves behind: users whose last_seen is
# written for minutes.

if wanted 15 "$live members live"; then
    sql small -c "call fill(null, '', 1000, '6 hours')"
    sql large -c "call fill(null, '', $live, '6 hours')"
    large_is_full=1
    compare small "rooms=10 bench small presence/heartbeat 16 app" \
        large "rooms=$((live / 100)) bench large presence/heartbeat 16 app"
    a=$(ratio large small)
    row 15 "heartbeats with $live members live" "$(calc $a) × with 1,000 ($(per_s ${of[small]}))" "≥ 0.9 ×" "$a >= 0.9"
fi

if any_wanted 24 27 && [ -z "${large_is_full:-}" ]; then sql large -c "call fill(null, '', $live, '6 hours')"; fi
if wanted 24 "all rooms of one among $live strangers"; then
    sql large -c "select count(presence.upsert('small-' || room, user_id => 'u' || m, ttl => '6 hours'))
                  from generate_series(1, 10) room, generate_series(1, 10) m" \
        -c "select count(presence.upsert('small-' || room, user_id => 'reader', ttl => '6 hours'))
            from generate_series(1, 10) room" -c "vacuum analyze presence.member" >/dev/null
    compare ours "bench large presence/list_all 1 reader"
    a=$(calc "1000 / ${of[ours]}")
    row 24 "list() of all rooms, by a user of ten rooms of 11 members, among $live strangers" "$a ms" "≤ 20 ms" "$a <= 20"
fi

if wanted 28 "what the index on audience costs"; then
    sql small -c "create sequence entered; grant usage on sequence entered to public" \
        -c "create unlogged table indexed (like presence.member including all)" \
        -c "create unlogged table bare (like presence.member including all)" -c "do \$\$ declare i regclass; begin
            for i in select indexrelid from pg_index join pg_class c on c.oid = indexrelid join pg_am a on a.oid = c.relam
                     where indrelid = 'bare'::regclass and amname = 'gin' loop execute 'drop index ' || i; end loop; end \$\$" \
        -c "grant insert on indexed, bare to public"
    compare indexed "bench small floor/enter_indexed 8 app" bare "bench small floor/enter_bare 8 app" \
        ours "bench small presence/enter 8 app"
    row 28 "a plain INSERT of a member, with and without an index on audience; 8 clients" \
        "$(calc "$(ratio indexed bare)") × ($(per_s ${of[indexed]}), $(per_s ${of[bare]})); by presence.upsert $(per_s ${of[ours]})" "" -
fi

# Whether the worker has all leases, and publishes.
is_up() {
    [ "$(sql large -c "select presence.heartbeat('$((live / 100))', '1') and presence.wait_for_flush('1 s')" 2>/dev/null)" = t ]
}
if wanted 27 "start on $live members"; then
    sql large -c "select presence.wait_for_flush('120 s')" >/dev/null
    starts=''
    for ((round = 1; round <= rounds && round <= 3; round++)); do
        scripts/cluster restart "$db" >/dev/null
        began=$(date +%s.%N) up_to=$((SECONDS + 120))
        until is_up; do
            if [ $SECONDS -gt $up_to ]; then die "the worker does not start"; fi
            sleep 0.05
        done
        starts+=$(calc "$(date +%s.%N) - $began")$'\n'
    done
    a=$(sed '/^$/d' <<<"$starts" | median)
    row 27 "after a restart of the server: until the worker has $live members and publishes" "$a s" "≤ 5 s" "$a <= 5"
fi

if wanted 23 "a room of $live"; then
    sql postgres -c "create database million"
    sql million -f benches/presence.sql >/dev/null
    sql million -c "call fill('million', 'm', $live, '6 hours')" \
        -c "select presence.upsert('million', user_id => 'reader', ttl => '6 hours')" -c "vacuum analyze presence.member" >/dev/null
    read -r many reading <<<"$(sql million -U reader -F ' ' -f benches/presence/read_all.sql)"
    row 23 "a room of $live read to its end in pages of 1,000" "$many members in $(calc $reading) s" "≤ 8 s" \
        "$reading <= 8 && $many >= $live"
fi

# Percentile of the latencies in pgbench's logs, between two Unix times, in ms.
logged() { # SHARE FROM TO
    cat "$work"/latency.* | awk -v from="$2" -v to="$3" '$5 >= from && $5 <= to { print $3 / 1000 }' | sort -n |
        awk -v share="$1" '{ a[NR] = $1 } END { at = int(NR * share); print a[at < 1 ? 1 : at] }'
}
if wanted 9 "100,000 leases end at once"; then
    dropped=$(health events_dropped) lease=12
    sql presence -c "call fill('doomed', 'd', 100000, '$lease s')"
    # All in one call, so that they end within the time that it takes.
    sql presence -c "select count(*) from presence.heartbeat_many(array_fill('doomed'::text, '{100000}'),
                         (select array_agg('d' || m) from generate_series(0, 99999) m))" >/dev/null
    end=$(($(date +%s) + lease))
    hold presence '' 'select presence.listen()' '"reason":"expired"'
    seconds=$((lease + 8)) bench presence presence/upsert 8 app -R 1000 -l --log-prefix="$work/latency" >/dev/null
    release
    slow=$(logged 0.99 $end $((end + 4))) lost=$(($(health events_dropped) - dropped))
    row 9 "100,000 leases end at the same instant, others upsert 1,000/s" \
        "${heard[0]} leaves heard, the last $(calc "${heard[3]} / 1000") s after the deadline; upserts meanwhile p99 $slow ms, before $(logged 0.99 0 $((end - 1))) ms; $lost events dropped" \
        "all within 5 s, p99 ≤ 20 ms" "${heard[0]} == 100000 && ${heard[3]} <= 5000 && $slow <= 20"
fi
