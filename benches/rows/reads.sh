# Sourced by benches/run: what calls that read cost.

if any_wanted 7 8 25; then
    sql presence -c "call fill('list', 'm', 1000, '6 hours')"
    for room in list large; do sql presence -U reader -c "select presence.upsert('$room', ttl => '6 hours')" >/dev/null; done
    sql presence -c "create table plain as select * from presence.online where room = 'list';
        alter table plain add primary key (room, member_id, connection_id)" -c "vacuum analyze"
fi
if wanted 7 "list a room of 1,000"; then
    compare floor "bench presence floor/list 1 postgres" ours "bench presence presence/list 1 reader"
    a=$(ratio floor ours)
    row 7 "list a room of 1,000 as an ordinary role" \
        "$(calc "1000 / ${of[ours]}") ms: $(calc $a) × the plain SELECT ($(calc "1000 / ${of[floor]}") ms)" \
        "≤ 1.3 × the time of a superuser's SELECT from a plain table" "$a <= 1.3"
fi

if any_wanted 8 25; then
    sql presence -c "call fill('large', 'm', 100000, '6 hours')" -c "create table plain_large as
        select * from presence.member where room = 'large'" -c "vacuum analyze"
fi
if wanted 8 "pages of a room of 100,000"; then
    compare small "bench presence presence/page_small 1 reader" large "bench presence presence/page_large 1 reader"
    a=$(ratio small large)
    row 8 "a page of 100 of a room of 100,000" \
        "$(calc $a) × the page of a room of 1,000 ($(calc "1000 / ${of[small]}") ms)" "≤ 1.3 ×" "$a <= 1.3"
fi

if wanted 25 "occupancy of 100,000"; then
    compare full "bench presence presence/occupancy 1 postgres" floor "bench presence floor/count 1 postgres" \
        seen "bench presence presence/occupancy 1 reader"
    a=$(calc "1000 / ${of[full]}") b=$(ratio floor seen)
    row 25 "occupancy of a room of 100,000: the full numbers; by what a member may see" \
        "$a ms; $(calc "1000 / ${of[seen]}" 1) ms, $(calc $b) × a count of a plain table's rows ($(calc "1000 / ${of[floor]}" 1) ms)" \
        "≤ 1 ms; ≤ 2 ×" "$a <= 1 && $b <= 2"
fi
