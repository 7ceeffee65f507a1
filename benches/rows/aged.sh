# Sourced by benches/run: the rows that are measured on an aged server. In its database many rooms were listened to by
# sessions that are gone, rooms were entered and left, channels were rotated, and members changed many times.

aged_rooms=200 # of 100 members each, that are still there
if [ -n "${QUICK:-}" ]; then left=20000; else left=200000; fi

# Runs pgbench until this many transactions are done.
work_off() { # DATABASE SCRIPT CLIENTS TRANSACTIONS USER [OPTION]...
    local database=$1 script=$2 clients=$3 transactions=$4 user=$5 out
    shift 5
    out=$(cd "$work" && as_server timeout 900 "$bin/pgbench" -h "$db" -U "$user" -n -M prepared -D rooms="$aged_rooms" \
        -c "$clients" -j 2 -t $((transactions / clients)) -f "$scripts/$script.sql" "$@" "$database" 2>&1) ||
        die "pgbench $script: $out"
}
# A value from presence.health of the database `aged`, once everything is published.
aged() { sql aged -c "select presence.wait_for_flush('120 s')" -c "select $1 from presence.health" | tail -n 1; }

say "a server ages: $left rooms are listened to and left"
sql postgres -c "create database aged"
sql postgres -c "create role mallory login; create role bob login; create role carol login;
                 create role in_300 login; create role in_1000 login; create role in_11000 login"
sql aged -f benches/presence.sql >/dev/null
sql aged -c "select presence.grant_access(role)
             from unnest('{mallory,bob,carol,in_300,in_1000,in_11000}'::regrole[]) role" \
    -c "create sequence ages" -c "grant usage on sequence ages to public" >/dev/null
sql aged -c "call fill(null, '', $((aged_rooms * 100)), '6 hours')"
# A hundred rooms in each session, which then ends.
work_off aged presence/age 8 $((left / 100)) app -C
work_off aged presence/age_rotate 2 200 postgres
work_off aged presence/upsert 8 $left app
sql aged -c "vacuum analyze"

if wanted 17 "listening to one room"; then
    measured='' most_channels=0 slowest=0
    for many in 300 1000 11000; do
        sql aged -c "do \$\$ begin for i in 0 .. $many - 1 by 500 loop
                perform presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'home-' || n, 'user_id', 'in_$many',
                    'ttl', '6 hours')) from generate_series(i, least(i + 500, $many) - 1) n));
                commit; perform presence.wait_for_flush('60 s'); commit; end loop; end \$\$"
        channels=$(sql aged -U "in_$many" -c "select count(*) from presence.listen('home-7')" \
            -c "select count(*) from pg_listening_channels()" | tail -n 1)
        # One room after the other, each alone. Without the first, because a new session has everything to look up.
        median=$({ echo '\timing on'; for ((i = 0; i <= 50; i++)); do
                echo "select count(*) from presence.listen('home-$((i * 5))');"; echo '\timing off'; echo 'unlisten *;'
                echo '\timing on'; done; } | sql aged -U "in_$many" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | tail -n 50 | median)
        measured+="${measured:+; }in $many rooms $channels channels, $(calc "$median") ms"
        if [ "$channels" -gt "$most_channels" ]; then most_channels=$channels; fi
        slowest=$(calc "($median > $slowest ? $median : $slowest)" 3)
    done
    row 17 "\`presence.listen(room)\`, by a user who is in 300, in 1,000 and in 11,000 rooms; median of 50 rooms" "$measured" \
        "≤ 16 channels, ≤ 5 ms" "$most_channels <= 16 && $slowest <= 5"
fi

if wanted 18 "events that nobody hears"; then
    before=$(aged notifications_sent) events=$(aged events_published)
    rooms=$aged_rooms bench aged presence/upsert 8 app >/dev/null
    sent=$(($(aged notifications_sent) - before)) events=$(($(aged events_published) - events))
    row 18 "after $left rooms were listened to and left: notifications of events that nobody hears" \
        "$sent of $events events" "0" "$sent == 0 && $events > 0"
fi

if wanted 19 "idle listeners"; then
    elsewhere="select presence.listen('elsewhere-\$i')"
    if [ "$rounds" -lt 3 ]; then often=3; else often=$rounds; fi
    rounds=$often compare alone 'rooms=$aged_rooms bench aged presence/upsert 8 app' \
        idle 'rooms=$aged_rooms with_listeners aged presence/upsert "$elsewhere"'
    a=$(ratio idle alone)
    row 19 "upsert with a changed state, 8 clients, with 100 idle listeners on other rooms" \
        "$(per_s ${of[idle]}): $(calc $a) × without any ($(per_s ${of[alone]}))" "≥ 0.9 ×" "$a >= 0.9"
fi

if wanted 20 "beside a flood"; then
    # mallory (1) knows the names of all rooms that she fills the audience with, and hears it; bob (2) is in another room.
    sql aged -c "create table watched (who int, role text, room text);
        insert into watched values (1, 'mallory', null), (1, 'mallory', 'hall'), (2, 'bob', 'calm');
        create function rooms_64() returns jsonb immutable return
            (select jsonb_agg('room:x' || k) from generate_series(1, 64) k);
        grant select on watched to public; grant usage on sequence ages to public" \
        -c "select count(presence.upsert('x' || i, user_id => 'mallory', ttl => '6 hours')) from generate_series(1, 64) i" \
        -c "select count(presence.upsert('calm', user_id => who, ttl => '6 hours')) from unnest('{bob,carol}'::text[]) who" >/dev/null
    before=$(aged "events_dropped || ' ' || resyncs") worker=$(aged worker_pid) lasting=$((seconds * 3))
    hold aged '' "set role none; select set_config('role', role, false) from watched where who = \$i;
                  select presence.listen(room) from watched where who = \$i" '"room":"calm"' 2
    watch_memory "$worker"
    (seconds=$lasting bench aged presence/flood 2 mallory >"$work/floods") &
    flooding=$!
    (sleep 1; sql aged -U mallory -c "set statement_timeout = '60 s'" -f benches/presence/flood_wide.sql >/dev/null) &
    wide=$!
    sent=$(sql aged -c "select last_value from ages")
    seconds=$lasting bench aged presence/calm 1 carol -R 50 >/dev/null
    sent=$(($(sql aged -c "select last_value from ages") - sent))
    wait $flooding $wide
    flushed=$(sql aged -c "select presence.wait_for_flush('60 s')")
    sleep 1
    release
    grown=$(memory_grown)
    read -r dropped resyncs <<<"$(aged "events_dropped || ' ' || resyncs" | paste -d ' ' - <(echo "$before") | awk '{ print $1 - $3, $2 - $4 }')"
    row 20 "events of others (50/s) while one user rewrites states of 60 kB for 64 tokens as fast as they can, and 900 members at once; for $lasting s" \
        "$sent sent, ${heard[0]} heard, p50 ${heard[1]}, p99 ${heard[2]}, the last after ${heard[3]} ms; $resyncs resyncs; $dropped events dropped; the worker's memory grew by $grown MB; $(calc "$(<"$work/floods") * 20" 0)/s rewritten" \
        "all, within 1 s; ≤ 64 MB; ≤ 1 resync a second" \
        "${heard[0]} == $sent && ${heard[3]} <= 1000 && $grown <= 64 && $resyncs <= $lasting + 1 && \"$flushed\" == \"t\""
fi

if wanted 21 "told in full"; then
    # twenty rooms; in each, one listener stays, app makes changes, and others enter, listen and leave
    sql aged -c "select count(presence.upsert('busy-' || i, user_id => 'l' || i, ttl => '6 hours')),
                        count(presence.upsert('busy-' || i, '{\"x\": 1}', connection_id => c::text, user_id => 'app', ttl => '6 hours'))
                 from generate_series(1, 20) i, generate_series(1, 50) c" >/dev/null
    full_share() { # cycles of coming and going a second
        local first told
        hold aged '' "select set_config('request.jwt.claims', '{\"sub\":\"l\$i\"}', false), set_config('role', 'app', false);
                      select presence.listen('busy-\$i')" '"event":"update"' 20
        first=$(sql aged -c "select presence.seq()")
        (seconds=$((lasting + 1)) bench aged presence/churn 10 postgres -R "$1" >/dev/null) &
        churning=$!
        sleep 0.5
        seconds=$lasting bench aged presence/busy 2 app -R 400 >/dev/null
        wait $churning
        sql aged -c "select presence.wait_for_flush('60 s')" >/dev/null
        sleep 0.5
        release
        told=$(sql aged -c "select count(*) filter (where event = 'update') || ' ' || count(*) filter (where event = 'leave')
                            from presence.event where seq > $first and room like 'busy-%'")
        echo "${heard[0]} ${heard[5]} $told"
    }
    lasting=$((seconds * 4))
    read -r full_slow bells_slow told_slow leaves_slow <<<"$(full_share 2)"
    read -r full_fast bells_fast told_fast leaves_fast <<<"$(full_share 20)"
    a=$(calc "$full_slow / $told_slow" 4) b=$(calc "$full_fast / $told_fast" 4)
    row 21 "events told in full in 20 rooms with a listener each, where others come, listen and go" \
        "a leave every 10 s a room ($leaves_slow): $(calc "$a * 100") % of $told_slow ($bells_slow doorbells); one every second ($leaves_fast): $(calc "$b * 100") % of $told_fast ($bells_fast doorbells)" \
        "≥ 99 %" "$a >= 0.99 && $b >= 0.99"
fi
