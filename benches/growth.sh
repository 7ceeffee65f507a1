# Sourced by benches/run: how cost grows with the number of things, with a plot for each kind (plot.awk), in docs/growth/.

growth=docs/growth
# A partial run keeps its plots only with PLOTS=docs/growth.
if [ -n "${QUICK:-}${ROWS:-}" ]; then growth=${PLOTS:-$work/growth}; fi
mkdir -p "$growth"
if [ "$seconds" -gt 2 ]; then briefly=2; else briefly=$seconds; fi
plots=(members rooms listeners rooms-of-one events audiences)

# Plots its standard input, one point per line: series, x, y.
plot() { # NAME "TITLE" "X" "Y"
    awk -v title="$2" -v xlabel="$3" -v ylabel="$4" -f benches/plot.awk >"$growth/$1.svg"
}
# The microseconds that a transaction takes with one client.
each() { # what `bench` takes
    local tps
    tps=$(seconds=$briefly bench "$@")
    calc "1000000 / $tps" 1
}
# A failure ends the run.
point() { # SERIES X COMMAND...
    local y
    y=$("${@:3}")
    echo "$1 $2 $y"
}
growth_section() {
    local name
    printf '\n## How cost grows\n\nOne client, %s s a point; other axes as in the table, both logarithmic.\n\n' "$briefly"
    for name in "${plots[@]}"; do
        printf '![%s](growth/%s.svg)\n' "$(sed -n 's:^<title>\(.*\)</title><style>.*:\1:p' "$growth/$name.svg")" "$name"
    done
}

say "growth with members"
sql postgres -c "create database growing"
sql postgres -c "alter database growing set presence.default_audience = 'any'"
sql growing -f benches/presence.sql >/dev/null
before=0
for members in 1000 10000 100000 $live; do
    sql growing -c "call fill(null, '', $members, '6 hours', $before)" -c "vacuum analyze presence.member"
    before=$members
    for verb in heartbeat upsert; do
        rooms=$((members / 100)) point $verb $members each growing presence/$verb 1 app
    done
    rooms=$((members / 100)) point "list(room_of_100)" $members each growing presence/list_room 1 reader
done | plot members "cost by members" "members live" "µs a call"

say "growth with rooms"
for many in 10 100 1000; do # of the hundred thousand in the table's database
    rooms=$many point heartbeat $many each presence presence/heartbeat 1 app
    rooms=$many point upsert $many each presence presence/upsert 1 app
done | plot rooms "cost by rooms written to" "rooms" "µs a call"

say "growth with listeners"
for many in 1 10 50 100 200; do
    idle=$many hold presence "select presence.listen('elsewhere-\$i')"
    point elsewhere $many each presence presence/upsert 1 app
    release
    hold presence '' "select presence.listen()" '' $many
    point who_hear_it $many each presence presence/upsert 1 app
    release
    idle=$many hold rival "listen elsewhere"
    point "rival:_elsewhere" $many each rival rival/upsert 1 app
    release
done | plot listeners "an upsert by listeners" "listeners" "µs a call"

say "growth with rooms a listener is in"
for many in 10 100 1000 10000; do
    sql presence -c "do \$\$ begin for i in 0 .. $many - 1 by 500 loop
        perform presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'mine-' || n, 'user_id', 'in_$many', 'ttl', '6 hours'))
            from generate_series(i, least(i + 500, $many) - 1) n)); commit; end loop; end \$\$" \
        -c "create role in_${many}_rooms login" -c "select presence.grant_access('in_${many}_rooms')" >/dev/null
    point "listen(room)" $many each presence presence/listen_as 1 postgres -D "who=in_$many"
    point "list()" $many each presence presence/list_as 1 postgres -D "who=in_$many"
done | plot rooms-of-one "cost by the rooms of a user" "rooms the user is in" "µs a call"

say "growth with events a second"
for rate in 500 1000 2000 5000 10000; do
    hold presence '' 'select presence.listen()'
    seconds=$((briefly * 2)) bench presence presence/upsert 8 app -R $rate >/dev/null
    release
    echo "p50 $rate ${heard[1]}"
    echo "p99 $rate ${heard[2]}"
done | plot events "from change to listener by events" "events a second" "ms"

say "growth with audiences"
for tokens in 1 4 16 64; do
    audience=$(sql presence -c "select array_agg('team:' || i) from generate_series(1, $tokens) i")
    for verb in change heartbeat; do
        point $verb $tokens each presence presence/audience_$verb 1 app -D "audience=$audience" -D tokens=$tokens
    done
done | plot audiences "cost by the audience of a member" "tokens" "µs a call"
