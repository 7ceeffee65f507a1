-- presence.history: the events of a room, for those who may see them, as far back as they are kept.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set presence.member_ids = 'any';
set role regress_alice;
select test.flushed() as before \gset
do $$
begin
    perform presence.upsert('h', '1', audience => '{any}'); commit; perform test.flushed(); commit;
    perform presence.upsert('h', '1', member_id => 'lamp', audience => '{any}'); commit; perform test.flushed(); commit;
    perform presence.upsert('h', '2'); commit; perform test.flushed(); commit;
    perform presence.upsert('h', '1', connection_id => 'hidden', audience => '{}'); commit; perform test.flushed(); commit;
    perform presence.upsert('elsewhere', '1', audience => '{any}'); commit; perform test.flushed(); commit;
    perform presence.upsert('h', '3'); commit; perform test.flushed(); commit;
    perform presence.delete('h'); commit; perform test.flushed(); commit;
    perform presence.delete('h', 'lamp'); commit; perform test.flushed(); commit;
end
$$;

-- Newest first, or oldest first; by seq.
select event, member_id, connection_id, state, reason from presence.history('h');
select event, member_id, connection_id, state, reason from presence.history('h', direction => 'forwards');
select array_agg(seq) = array_agg(seq order by seq desc) as backwards from presence.history('h');
select array_agg(seq) = array_agg(seq order by seq) as forwards from presence.history('h', direction => 'forwards');
select (select array_agg(h order by seq) from presence.history('h') h) = (select array_agg(e order by seq) from presence.event e where room = 'h') as rows_of_the_log;
select count(*) from presence.history('never');

-- Of one member.
select event, state from presence.history('h', member_id => 'lamp');
select count(*) from presence.history('h', member_id => 'nobody');

-- What others may see of it.
set role regress_bob;
select event, member_id, connection_id, state from presence.history('h');
select event, state from presence.history('elsewhere');
set role regress_gateway;
select count(*) from presence.history('h');

-- since is inclusive, until exclusive.
set role regress_bob;
select at as t2 from presence.event where seq > :before and member_id = 'regress_alice' and state = '2' \gset
select at as t3 from presence.event where seq > :before and event = 'update' and member_id = 'regress_alice' and state = '3' \gset
select event, state from presence.history('h', since => :'t2', until => :'t3');
select event, state from presence.history('h', since => :'t3');
select event, member_id, state from presence.history('h', until => :'t2', direction => 'forwards');
select count(*) from presence.history('h', since => :'t3', until => :'t3');
select count(*) from presence.history('h', since => :'t3', until => :'t2');
select event, state from presence.history('h', since => :'t2', until => :'t3', member_id => 'lamp');

-- Page by page, in either direction, each event once.
create function pg_temp.pages(size integer) returns text language plpgsql as $$
declare
    place bigint;
    page bigint[];
    seen bigint[] := '{}';
    turns integer := 0;
begin
    loop
        select array_agg(seq), min(seq) into page, place from presence.history('h', max_rows => size, before_seq => place);
        exit when page is null;
        seen := seen || page;
        turns := turns + 1;
    end loop;
    return format('%s pages, %s events, in order: %s', turns, cardinality(seen), seen = (select array_agg(seq order by seq desc) from presence.event where room = 'h'));
end
$$;
set role regress_alice;
select size, pg_temp.pages(size) from unnest(array[1, 2, 3, 7, 100, 1000]) size;
-- forwards, before_seq is the end and since is the beginning
select max(seq) as last from presence.event where room = 'h' \gset
select event, state from presence.history('h', direction => 'forwards', before_seq => :last, max_rows => 2);
select count(*) from presence.history('h', before_seq => (select min(seq) from presence.event where room = 'h'));

-- Errors.
select s, e.code, e.message, e.detail from unnest(array[$$ presence.history(null) $$, $$ presence.history('') $$, $$ presence.history('h', max_rows => 0) $$, $$ presence.history('h', max_rows => 1001) $$,
    $$ presence.history('h', max_rows => null) $$, $$ presence.history('h', direction => 'sideways') $$, $$ presence.history('h', direction => null) $$]) s, test.error('select * from' || s) e;

-- keep_history = false: history shows nothing, but changes does (a client that reconnects needs it); and back to true.
reset role;
select keep_history from presence.set_room('h', keep_history => false);
set role regress_alice;
select count(*) from presence.history('h');
select count(*) from presence.history('h', direction => 'forwards');
select count(*) from presence.history('elsewhere');
select count(*) from presence.changes(:before, 'h') where event <> 'position';
reset role;
select count(*) from presence.history('h');
select keep_history from presence.set_room('h', keep_history => true);
set role regress_alice;
select count(*) from presence.history('h');
-- a caller who may not read the room's settings finds nothing either
reset role;
select keep_history from presence.set_room('h', keep_history => false, audience => '{}');
set role regress_bob;
select count(*) from presence.get_room('h');
select count(*) from presence.history('h');
reset role;
select presence.delete_room('h');
set role regress_bob;
select count(*) from presence.history('h');

-- Room events are part of the history, too.
reset role;
select test.flushed() as before \gset
select (presence.set_room('told', '{"title": "x"}', audience => '{users}')).room;
select test.flushed() is not null as published \gset
set role regress_bob;
select event, metadata from presence.history('told');
reset role;
select presence.delete_room('told');

-- An expired member's leave is at the place where it was published, with the time at which the lease ended.
set role regress_alice;
select expires_at as deadline from presence.upsert('brief', '"words"', ttl => '1 s', audience => '{any}') \gset
select test.wait_until($$ exists (select from presence.history('brief') where event = 'leave') $$);
select event, state, reason, at = :'deadline' as at_its_end from presence.history('brief', max_rows => 1);

-- retention 0: no history.
reset role;
set presence.history_retention = 0;
select count(*) from presence.history('h');
reset presence.history_retention;
select count(*) from presence.history('h');

select presence.delete_all('regress_alice') > 0 as left;
reset presence.member_ids;
drop function test.flushed();
