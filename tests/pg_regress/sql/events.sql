-- The log: the net effect of each transaction, for those who may see it.
reset role;
set presence.member_ids = 'any';
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;

-- Enter, update, leave: with everything that a listener needs. Each has one version, in the order of the log.
set role regress_alice;
select test.flushed() as before \gset
select version as v1, joined_at as joined from presence.upsert('lobby', '{"x": 1}', status => 'online', metadata => '{"name": "A"}', audience => '{any}') \gset
select test.flushed() is not null as published \gset
select version as v2, updated_at as updated from presence.update('lobby', '{"y": 2}') \gset
select test.flushed() is not null as published \gset
select presence.delete('lobby');
select test.flushed() is not null as published \gset
select event, room, member_id, connection_id, user_id, status, state, metadata, connections, reason, audience,
       case event when 'enter' then version = :v1 when 'update' then version = :v2 else version > :v2 end as version,
       joined_at = :'joined' as joined_at, case event when 'enter' then at = joined_at when 'update' then at = :'updated' else at > :'updated' end as at
from presence.event where seq > :before order by seq;
select bool_and(seq = before + 1 and version > version_before) as in_order
from (select seq, version, lag(seq) over w as before, lag(version) over w as version_before from presence.event where seq > :before window w as (order by seq)) e
where before is not null;

-- The net effect of a transaction. Nothing, for a member that entered and left in it.
select test.flushed() as before \gset
begin;
select (presence.upsert('lobby', '{"n": 1}')).room;
select (presence.upsert('lobby', '{"n": 2}')).room;
select presence.delete('lobby');
commit;
select test.flushed() = :before as nothing;
-- One enter with the last data.
begin;
select (presence.upsert('lobby', '{"n": 3}')).room;
select (presence.upsert('lobby', '{"n": 4}')).room;
select (presence.update('lobby', '{"n": 5}')).room;
commit;
select test.flushed() is not null as published \gset
select event, state from test.log(:before);
-- One update.
select test.flushed() as before \gset
begin;
select (presence.upsert('lobby', '{"n": 6}')).room;
select (presence.upsert('lobby', '{"n": 7}')).room;
commit;
select test.flushed() is not null as published \gset
select event, state from test.log(:before);
-- A leave and an enter are both kept; the leave shows what others saw, the enter the current data.
select test.flushed() as before \gset
begin;
select (presence.upsert('lobby', '{"n": 8}')).room;
select presence.delete('lobby');
select (presence.upsert('lobby', '{"n": 9}')).room;
select (presence.upsert('lobby', '{"n": 10}')).room;
commit;
select test.flushed() is not null as published \gset
select event, connections, reason from test.log(:before);
select state from test.log(:before) where event = 'enter';
select count(distinct joined_at) as stays from presence.event where seq > :before;
-- A leave is kept, whatever follows: out, in and out again is one leave.
select test.flushed() as before \gset
begin;
select presence.delete('lobby');
select (presence.upsert('lobby', '{"n": 11}')).room;
select presence.delete('lobby');
commit;
select test.flushed() is not null as published \gset
select event, connections, reason from test.log(:before);

-- Savepoints: what was rolled back never happened, and what was released belongs to the parent.
select (presence.upsert('lobby', '{"n": 20}', audience => '{any}')).room;
select test.flushed() as before \gset
begin;
savepoint a;
select (presence.upsert('lobby', '{"n": 21}')).room;
savepoint b;
select presence.delete('lobby');
select (presence.upsert('other')).room;
rollback to b;
select (presence.upsert('lobby', '{"n": 22}')).room;
release b;
rollback to a;
commit;
select test.flushed() = :before as nothing;
begin;
savepoint a;
select (presence.upsert('lobby', '{"n": 23}')).room;
savepoint b;
select (presence.upsert('third', '{"n": 1}')).room;
savepoint c;
select (presence.upsert('lobby', '{"n": 24}')).room;
select (presence.upsert('third', '{"n": 2}')).room;
rollback to c;
release b;
release a;
savepoint d;
select presence.delete('third');
rollback to d;
select (presence.upsert('third', metadata => '{"m": 3}')).room;
commit;
select test.flushed() is not null as published \gset
select event, room, state from test.log(:before) order by room;
select state from presence.get('lobby');
do $$
begin
    begin
        perform presence.upsert('caught');
        raise division_by_zero;
    exception when division_by_zero then
        perform presence.upsert('lobby', '{"n": 25}');
    end;
    begin
        perform presence.delete('third');
        perform 1 / 0;
    exception when division_by_zero then
        null;
    end;
end
$$;
select test.flushed() as after \gset
select room from presence.list();
select event, room, state from test.log(:before) where room = 'caught' or state = '{"n": 25}';
begin;
select (presence.upsert('aborted')).room;
select presence.delete('lobby');
abort;
select test.flushed() = :after as nothing;
select presence.heartbeat('aborted') as aborted, presence.heartbeat('lobby') as lobby;

-- The table's definition is looked up again within the transaction (autovacuum's ANALYZE causes that in others, too).
reset role;
begin;
select (presence.upsert('analyzed')).room;
analyze presence.member;
commit;
select count(*) from presence.get('analyzed');
select presence.delete('analyzed');
set role regress_alice;

-- connections: the number of members with the same name; 1 on enter means the first one, 0 on leave the last one.
select test.flushed() as before \gset
select (presence.upsert('tabs', connection_id => c)).connection_id from unnest(array['1', '2', '3']) c;
select presence.delete('tabs', connection_id => c) from unnest(array['2', '1', '3']) c;
select test.flushed() is not null as published \gset
select event, connection_id, connections from test.log(:before) where room = 'tabs' and event = 'enter' order by connections;
select event, connections from test.log(:before) where room = 'tabs' and event = 'leave';
select test.flushed() as before \gset
select (presence.upsert('tabs', connection_id => '1')).connection_id;
begin;
select (presence.upsert('tabs', connection_id => '2')).connection_id;
select presence.delete('tabs', connection_id => '1');
commit;
select presence.delete('tabs', connection_id => null);
select test.flushed() is not null as published \gset
select event, connection_id, connections from test.log(:before);

-- A changed audience. The owner and service roles see the update; those who lose sight get a leave, those who gain it an
-- enter.
select (presence.delete_all()) > 0 as left;
select (presence.upsert('show', '{"a": 1}', audience => '{user:regress_bob}')).room;
select test.flushed() as before \gset
select (presence.upsert('show', '{"a": 2}', audience => '{user:regress_carol}')).room;
select test.flushed() is not null as published \gset
select event, state, reason, connections from test.log(:before);
set role regress_bob;
select event, state, reason, connections from test.log(:before);
set role regress_carol;
select event, state, reason, connections from test.log(:before);
set role regress_gateway;
select event, state, reason, connections from presence.changes(:before) where event <> 'position';
reset role;
select event, state, reason, audience, seq > lag(seq) over w as later, version - lag(version) over w as versions
from presence.event e where seq > :before window w as (order by seq) order by seq;

-- Wider: those who gain sight get an enter. Those who saw it before get an update, or an enter with the same data.
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('show', '{"a": 3}', audience => '{any}')).room;
select test.flushed() is not null as published \gset
set role regress_bob;
select event, state, reason from test.log(:before);
set role regress_carol;
select bool_and(event in ('enter', 'update')) as told, count(distinct version) as versions, max(state::text) as state from presence.event where seq > :before;
-- Only the owner and service roles see the whole audience; those who get the enter have a line of their own.
set role regress_alice;
select event, audience from presence.changes(:before) where event <> 'position';
select event, audience from presence.history('show', max_rows => 1);
set role regress_bob;
select distinct audience from presence.changes(:before) where event <> 'position';
set role regress_gateway;
select event, audience from presence.changes(:before) where event <> 'position';
select event, audience from presence.history('show', max_rows => 1);
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('show', '{"a": 3.1}', audience => '{user:regress_bob,role:b,room}')).room;
select test.flushed() is not null as published \gset
select (presence.upsert('show', '{"a": 3.2}', audience => '{user:regress_carol,user:regress_bob,role:a,room,users}')).room;
select test.flushed() is not null as published \gset
set role regress_bob;
select event, state, audience from presence.changes(:before) where event <> 'position';
set role regress_gateway;
select event, state, audience from presence.changes(:before) where event <> 'position';
select event, state, audience from presence.history('show', max_rows => 2, direction => 'forwards', before_seq => null, since => (select min(at) from presence.event where seq > :before));
reset role;
select event, state, audience from presence.changes(:before) where event <> 'position';
select seq - :before as line, event, audience from presence.event where seq > :before order by seq;
-- Narrower: those who still see it get an update, and no leave after it.
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('show', '{"a": 4}', audience => '{user:regress_bob}')).room;
select test.flushed() is not null as published \gset
set role regress_carol;
select event, state, reason from test.log(:before);
set role regress_bob;
select (array_agg(event order by seq desc))[1] as last_event, (array_agg(state order by version desc))[1] as newest_state from presence.event where seq > :before;
-- To another user and then to nobody in one transaction: those who never saw it hear nothing.
set role regress_alice;
select test.flushed() as before \gset
begin;
select (presence.upsert('show', '{"a": 5}', audience => '{user:regress_carol}')).room;
select (presence.upsert('show', '{"a": 6}', audience => '{}')).room;
commit;
select test.flushed() is not null as published \gset
select event, state from test.log(:before);
set role regress_bob;
select event, state, reason from test.log(:before);
set role regress_carol;
select count(*) from test.log(:before);
-- Hidden and deleted in one transaction: one leave, with the data that was visible before.
set role regress_alice;
select (presence.upsert('show', '{"a": 7}', audience => '{user:regress_bob}')).room;
select test.flushed() as before \gset
begin;
select (presence.upsert('show', '{"a": 8}', audience => '{}')).room;
select presence.delete('show');
commit;
select test.flushed() is not null as published \gset
set role regress_bob;
select event, state, reason from test.log(:before);
set role regress_carol;
select count(*) from test.log(:before);

-- Given to another owner: the old one, who no longer sees it, gets a leave; the new one is told that it is here.
set role regress_gateway;
select (presence.upsert('gift', '{"g": 1}', member_id => 'box', user_id => 'regress_alice', audience => '{}')).room;
select test.flushed() as before \gset
select (presence.upsert('gift', '{"g": 2}', member_id => 'box', user_id => 'regress_bob')).room;
select test.flushed() is not null as published \gset
set role regress_alice;
select count(*) from presence.get('gift', 'box');
select event, member_id from test.log(:before);
set role regress_bob;
select event in ('enter', 'update') as told, state from test.log(:before);
set role regress_gateway;
select event from presence.changes(:before) where event <> 'position';
select presence.delete('gift', 'box');

-- A member of the room sees what its token allows: nothing before it enters, afterwards also the room's log.
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('room', '{"a": 1}')).room;
select test.flushed() is not null as published \gset
set role regress_bob;
select count(*) from test.log(:before);
select (presence.upsert('room', '{"b": 1}')).room;
select test.flushed() is not null as published \gset
select event, member_id from test.log(:before);

-- changes: the log after a seq, and at the end the position.
set role regress_alice;
select test.flushed() as after \gset
select event, member_id from presence.changes(:before);
select event, seq = :after as at_end from presence.changes(:before) where event = 'position';
select event, room, seq = :after as at_end, version is null and member_id is null and state is null as empty from presence.changes(:after);
select event, member_id from presence.changes(:before, 'room', 1);
select seq as place from presence.changes(:before, 'room', 1) where event = 'position' \gset
select event, member_id from presence.changes(:place, 'room', 1);
select event, member_id from presence.changes(:before, 'elsewhere');
select seq = :after as advances from presence.changes(:before, 'elsewhere');
-- the position of a reader who may see nothing advances nevertheless
set role regress_carol;
select event, seq = :after as at_end from presence.changes(:before);
-- a position that is no longer in the log, or never was
select event, count(*) from presence.changes(-1) where event = 'resync' group by 1;
select (array_agg(event))[1] = 'resync' as first, (array_agg(event))[count(*)::integer] = 'position' as last from presence.changes(0);
-- a position ahead of the log: the returned one is never behind the reader's
select event, seq = :after + 1000 as as_given from presence.changes(:after + 1000);

-- Only the worker writes the log.
reset role;
set role regress_alice;
select e.code, e.message from unnest(array['insert into presence.event (seq, event) values (1, ''enter'')', 'delete from presence.event', 'update presence.event set seq = 1',
    'truncate presence.event', 'select * from _presence._event_0', 'select key from _presence.secret']) s, test.error(s) e;

reset role;
select count(*) from unnest(array['regress_alice', 'regress_bob']) u, presence.delete_all(u);
reset presence.member_ids;
drop function test.flushed();
