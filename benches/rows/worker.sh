# Sourced by benches/run: what the worker does and holds, and how soon.

if wanted 10 "commit to notification"; then
    latency() { # DATABASE LISTEN SCRIPT CLIENTS [OPTION]...
        local database=$1 listen=$2 script=$3 clients=$4
        shift 4
        hold "$database" '' "$listen"
        seconds=$((seconds * 3)) bench "$database" "$script" "$clients" app "$@" >/dev/null
        release
    }
    latency presence 'select presence.listen()' presence/upsert_slowly 1; calm=("${heard[@]}")
    latency rival 'listen presence' rival/upsert_slowly 1; rival_calm=("${heard[@]}")
    latency presence 'select presence.listen()' presence/upsert 8 -R 5000; busy=("${heard[@]}")
    latency rival 'listen presence' rival/upsert 8 -R 5000; rival_busy=("${heard[@]}")
    row 10 "from the change (its \`at\`, before the commit) to the listener" \
        "idle p50 ${calm[1]} ms, p99 ${calm[2]} ms (the rival ${rival_calm[1]}, ${rival_calm[2]}); at 5,000/s p50 ${busy[1]}, p99 ${busy[2]} ms (${rival_busy[1]}, ${rival_busy[2]})" \
        "idle p50 ≤ 0.35 ms, p99 ≤ 3 ms; busy p50 ≤ 4 ms, p99 ≤ 10 ms" \
        "${calm[1]} <= 0.35 && ${calm[2]} <= 3 && ${busy[1]} <= 4 && ${busy[2]} <= 10"
fi

if wanted 11 "sustained events"; then
    sql presence -c "create table feed as select id, jsonb_agg(jsonb_build_object('room', 'feed-' || id,
            'member_id', 'm' || m, 'user_id', 'u' || m, 'ttl', '6 hours',
            'state', jsonb_build_object('x', 12345, 'tool', 'pen')))::text as members
        from generate_series(1, 200) id, generate_series(1, 500) m group by id;
        create unique index on feed (id)"
    sql presence -c "do \$\$ begin for i in 1..200 loop
            perform presence.upsert_many(members::jsonb) from feed where id = i; commit; end loop; end \$\$"
    flush
    sustained=$((seconds * 6)) worker=$(health worker_pid)
    published=$(health events_published) dropped=$(health events_dropped) cpu=$(worker_cpu $worker)
    watch_memory $worker
    seconds=$sustained bench presence presence/upsert_many 2 postgres >/dev/null
    cpu=$(calc "($(worker_cpu $worker) - $cpu) * 100 / $sustained" 0)
    sent=$(calc "($(health events_published) - $published) / $sustained" 0)
    flush
    grown=$(memory_grown) dropped=$(($(health events_dropped) - dropped))
    row 11 "two clients of upsert_many (500 distinct members a call) as fast as they can, for $sustained s, log on" \
        "$(per_s $sent) published meanwhile, $dropped dropped; the worker took $cpu % of a core, its memory grew by $grown MB" \
        "≥ 50,000/s, none dropped, ≤ 64 MB" "$sent >= 50000 && $dropped == 0 && $grown <= 64"
fi

if wanted 13 "100,000 beating every 30 s"; then
    worker=$(health worker_pid) cpu=$(worker_cpu $worker) watched=$((seconds * 6))
    seconds=$watched bench presence presence/heartbeat 2 app -R 3333 >/dev/null
    cpu=$(calc "($(worker_cpu $worker) - $cpu) * 100 / $watched")
    row 13 "100,000 live members that beat every 30 s" "the worker takes $cpu % of a core" "≤ 1 %" "$cpu <= 1"
fi

if wanted 14 "shared memory"; then
    bytes=$(sql presence -c "select round(allocated_size::numeric / $shared, 1) from pg_shmem_allocations
                             where name = 'presence_ext leases'")
    row 14 "shared memory a member" "$bytes bytes" "≤ 104" "$bytes <= 104"
fi
