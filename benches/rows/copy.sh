# Sourced by benches/run: what the copy costs writers, on a second cluster that is like the first except for having a name.

named=$work/named
in_named() { db=$named "$@"; }
if any_wanted 29 30; then
    say "starting a cluster with a name"
    scripts/cluster start "$named" -o presence.max_members=$shared -o presence.member_ids=any -o presence.max_per_user=0 \
        -o max_connections=250 -o shared_buffers=1GB -o max_wal_size=4GB -o checkpoint_timeout=1h -o presence.node_name=a
    in_named sql postgres -c "create role app login; create role reader login; create role web_a; create role web_b" -c "create database presence"
    in_named sql presence -f benches/presence.sql >/dev/null
    in_named sql presence -v rooms=$rooms -f benches/common.sql
    in_named sql presence -c "call fill(null, '', $((rooms * 100)), '6 hours')"
    in_named flush
    in_named sql presence -c "vacuum analyze"
fi

if wanted 29 "upsert with the copy"; then
    compare plain "bench presence presence/upsert 8 app" named "in_named bench presence presence/upsert 8 app"
    a=$(ratio named plain)
    row 29 "upsert with a changed state, 8 clients, where presence.node_name is set: the worker copies each change to a logged table" \
        "$(per_s ${of[named]}): $(calc $a) × without a name ($(per_s ${of[plain]}))" "≥ 0.9 × without" "$a >= 0.9"
fi
if wanted 30 "heartbeat with the copy"; then
    compare plain "bench presence presence/heartbeat 16 app" named "in_named bench presence presence/heartbeat 16 app"
    a=$(ratio named plain)
    row 30 "heartbeat of random members, 16 clients, where presence.node_name is set" \
        "$(per_s ${of[named]}): $(calc $a) × without a name ($(per_s ${of[plain]}))" "≥ 0.97 × without" "$a >= 0.97"
fi
