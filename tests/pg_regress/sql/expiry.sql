-- Leases run out: from the deadline on the member is not shown anywhere, and it leaves once.
set role regress_alice;
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset

select (presence.upsert('expiry', '{"last": "words"}', ttl => '1 s')).room;
select (presence.upsert('expiry', connection_id => 'beats', ttl => '1 s')).room;
select (presence.upsert('expiry', connection_id => 'long')).room;
select expires_at as deadline, version from presence.get('expiry', connection_id => '') \gset
do $$
begin
    for turn in 1..15 loop
        if not presence.heartbeat('expiry', connection_id => 'beats') then
            raise 'lost a member that was renewed in time';
        end if;
        perform pg_sleep(0.1);
    end loop;
end
$$;
select clock_timestamp() > :'deadline' as past;
select connection_id from presence.list('expiry');
select presence.heartbeat('expiry') as gone, presence.heartbeat('expiry', connection_id => 'beats') as beats;
select test.wait_until($$ exists (select from presence.event where room = 'expiry' and event = 'leave') $$);
select connection_id, state, connections, reason from test.log(:before) where event = 'leave';
select at = :'deadline' as at_its_deadline, version > :version as newer from presence.event where seq > :before and event = 'leave';
select connection_id from presence.member where room = 'expiry' order by 1;

-- The next upsert begins a new stay.
select joined_at > :'deadline' as new_stay, state, version > :version as newer from presence.upsert('expiry');

-- An upsert that finds the row before the sweeper does publishes the leave itself: one leave, one enter.
reset role;
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset
begin;
set local role regress_alice;
select expires_at as deadline from presence.upsert('found', '{"old": 1}', status => 'old', ttl => '1 s') \gset
commit;
-- a lock keeps the sweeper away; the deadline still counts, to the microsecond, by the clock and not the transaction's time
begin;
select count(*) from (select 1 from presence.member where room = 'found' for update) m;
set local role regress_alice;
select presence.heartbeat('found') as alive;
select expires_at as deadline from presence.get('found') \gset
select pg_sleep(1.1) is not null as later;
select now() < :'deadline' as transaction_began_before, clock_timestamp() >= :'deadline' as now_past;
select count(*) from presence.get('found');
select count(*) from presence.online where room = 'found';
select * from presence.occupancy('found');
select presence.state('found');
select presence.heartbeat('found') as renewed;
select * from presence.heartbeat_many('{found}');
select count(*) from presence.update('found', '{"too": "late"}');
select presence.delete('found') as none_to_delete;
select presence.tokens() && '{room:found}' as still_in_the_room;
with w as (update presence.member set status = 'late' where room = 'found' returning 1) select count(*) from w;
select count(*) as raw_rows from presence.member where room = 'found';
select state, status, ttl, joined_at > :'deadline' as new_stay from presence.upsert('found', metadata => '{"new": 1}');
commit;
select presence.wait_for_flush('10 s');
select event, state, status, connections, reason from test.log(:before) where room = 'found';
select count(*) filter (where event = 'leave') as leaves, count(distinct joined_at) as stays,
       bool_and(at = :'deadline') filter (where event = 'leave') as at_its_deadline
from presence.event where seq > :before and room = 'found';

-- The expiry stands even if that upsert is rolled back: the member does not come back, and leaves once.
select presence.seq() as before \gset
set role regress_alice;
select (presence.upsert('back', '{"old": 1}', ttl => '1 s')).room;
reset role;
begin;
select count(*) from (select 1 from presence.member where room = 'back' for update) m;
select pg_sleep(1.1) is not null as later;
set local role regress_alice;
select (presence.upsert('back', '{"new": 1}')).state;
rollback;
set role regress_alice;
select count(*) from presence.get('back');
select presence.heartbeat('back') as alive;
select test.wait_until($$ exists (select from presence.event where room = 'back' and event = 'leave') $$);
select event, state, reason from test.log(:before) where room = 'back';

-- Another user's expired member does not block its key.
reset role;
set presence.member_ids = 'any';
select presence.seq() as before \gset
set role regress_alice;
select (presence.upsert('seat', member_id => 'one', ttl => '1 s')).user_id;
reset role;
begin;
select count(*) from (select 1 from presence.member where room = 'seat' for update) m;
set local role regress_bob;
select e.code, e.message from test.error($$ select presence.upsert('seat', member_id => 'one') $$) e;
select pg_sleep(1.1) is not null as later;
select user_id from presence.upsert('seat', member_id => 'one');
commit;
select presence.wait_for_flush('10 s');
select event, user_id, connections, reason from test.log(:before) where room = 'seat';
reset presence.member_ids;

-- sweep() does what the worker does; service roles may call it.
begin;
select presence.sweep() as nothing_due;
commit;

-- A thousand at once: each leaves once.
select presence.seq() as before \gset
set role regress_gateway;
insert into presence.member (room, member_id, user_id, ttl) select 'crowd', 'u' || n, 'u' || n, '1 s' from generate_series(1, 1000) n;
select test.wait_until($$ (select count(*) = 0 from presence.online where room = 'crowd') $$);
select test.wait_until($$ (select count(*) = 0 from presence.member where room = 'crowd') $$);
select presence.wait_for_flush('10 s');
select event, reason, count(*), count(distinct member_id), min(connections), max(connections) from presence.event
where seq > :before and room = 'crowd' group by 1, 2 order by 1;
reset role;
select count(*) from unnest(array['regress_alice', 'regress_bob']) u, presence.delete_all(u);
select test.wait_until('(select slots_used from presence.health) <= 2');
