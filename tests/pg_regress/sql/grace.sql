-- presence.delete with after: a leave with a grace period.
set role regress_alice;
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset

-- The member is here until then, and no sign of life postpones that.
select presence.delete('lobby', after => '1 h') as absent;
select version from presence.upsert('lobby', '{"n": 1}', ttl => '1 min') \gset
select last_seen_at as seen from presence.get('lobby') \gset
select presence.delete('lobby', state => '"bye"', after => '10 s') as will_leave;
select expires_at as ends, version > :version as newer, last_seen_at = :'seen' as as_before, ttl, state from presence.get('lobby') \gset gone_
select :'gone_newer' as newer, :'gone_as_before' as seen_as_before, :'gone_ttl' as ttl, :'gone_state' as state,
       :'gone_ends'::timestamptz - clock_timestamp() between '9 s' and '10.001 s' as ends_then;
select leaves_at = :'gone_ends' as leaves_then, last_word, leave_reason from presence.member;
select presence.heartbeat('lobby');
select * from presence.heartbeat_many('{lobby}');
select expires_at = :'gone_ends' as not_moved, last_seen_at = :'seen' as seen_as_before, state from presence.update('lobby', '{"n": 2}');
select expires_at = :'gone_ends' as not_moved, last_seen_at = :'seen' as seen_as_before, state from presence.update('lobby', '{"n": 2}');
with w as (update presence.member set status = 'late' where room = 'lobby' returning expires_at)
select expires_at = :'gone_ends' as not_moved from w;
select expires_at = :'gone_ends' as not_moved, last_seen_at = :'seen' as seen_as_before, status, state from presence.get('lobby');
select members, last_seen_at = :'seen' as seen_as_before from presence.users('lobby');
select * from presence.occupancy('lobby');

-- An upsert cancels the leave, also one that changes nothing, without an event. The lease begins again.
select presence.wait_for_flush('10 s');
select event, status, state, reason from test.log(:before) where event <> 'update';
select presence.seq() as before \gset
select expires_at > :'gone_ends' as stays, last_seen_at > :'seen' as seen_now, state from presence.upsert('lobby', '{"n": 2}');
select leaves_at, last_word, leave_reason from presence.member;
select expires_at > :'gone_ends' as stays, last_seen_at > :'seen' as seen_now, joined_at < :'gone_ends'::timestamptz - interval '10 s' as same_stay
from presence.get('lobby');
select presence.wait_for_flush('10 s');
select event, status, state, reason from test.log(:before);

-- The last call counts, in both directions, but not beyond the lease, which nothing renews in the meantime.
select presence.delete('lobby', after => '10 s'), presence.delete('lobby', after => '30 s');
select expires_at - clock_timestamp() between '29 s' and '30.001 s' as by_the_last from presence.get('lobby');
select presence.delete('lobby', after => '5 s');
select expires_at - clock_timestamp() between '4 s' and '5.001 s' as by_the_last from presence.get('lobby');
select presence.delete('lobby', after => '1 h');
select expires_at - last_seen_at as by_the_lease from presence.get('lobby');
select leaves_at > expires_at as as_said from presence.member;
-- 0 means now
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset
select presence.delete('lobby', state => '"now"', after => '0') as left, presence.delete('lobby', after => '0') as absent;
select presence.wait_for_flush('10 s');
select event, state, reason from test.log(:before);
-- and without after, an earlier last word is dropped
select (presence.upsert('lobby', '{"n": 3}')).room as entered;
select presence.delete('lobby', state => '"later"', after => '1 h'), presence.delete('lobby') as now;
select presence.wait_for_flush('10 s');
select event, state, reason from test.log(:before);

-- At the end: gone everywhere at that moment, with one leave, with the last data or the last word.
select presence.seq() as before \gset
select count(presence.upsert('hall', to_jsonb(c), connection_id => c, ttl => case c when '4' then interval '1 s' end))
from unnest(array['1', '2', '3', '4']) c;
select presence.delete('hall', connection_id => '1', after => '200 ms'),
       presence.delete('hall', connection_id => '2', state => '"word"', after => '200 ms'),
       presence.delete('hall', connection_id => '4', state => '"lease first"', after => '1 min');
select connection_id, expires_at as ends from presence.get('hall', connection_id => '2') \gset
do $$
begin
    while exists (select from presence.get('hall', connection_id => '2')) loop
        perform presence.heartbeat('hall', connection_id => '2');
    end loop;
end
$$;
select clock_timestamp() >= :'ends' as not_sooner;
select connection_id from presence.list('hall') where connection_id < '4';
select presence.heartbeat('hall', connection_id => '2') as here;
select count(*) from presence.update('hall', '{"too": "late"}', connection_id => '2');
select presence.delete('hall', connection_id => '2', after => '1 min') as will_leave;
select test.wait_until('not exists (select from presence.member where room = ''hall'' and connection_id in (''1'', ''2'', ''4''))');
select presence.wait_for_flush('10 s');
select connection_id, state, reason from test.log(:before) where event <> 'enter' order by connection_id;
select e.at = :'ends' as then from presence.event e where e.seq > :before and e.event = 'leave' and e.connection_id = '2';

-- An upsert that finds the row before the sweeper does: the member has left, and enters.
select presence.seq() as before \gset
begin;
select (presence.upsert('found', '1')).room;
commit;
begin;
select presence.delete('found', after => '500 ms');
commit;
begin;
select count(*) from (select from presence.member where room = 'found' for update) m;
select pg_sleep(0.6) is not null as later;
select count(*) from presence.get('found');
select state from presence.upsert('found', '2');
commit;
select presence.wait_for_flush('10 s');
select event, state, reason from test.log(:before);
select presence.delete('found');

-- Rolled back, it has no effect; savepoints.
select (presence.upsert('lobby')).room as entered;
begin;
select presence.delete('lobby', after => '10 s');
rollback;
select expires_at - last_seen_at = ttl as as_before from presence.get('lobby');
begin;
select presence.delete('lobby', after => '1 min');
savepoint here;
select presence.delete('lobby', after => '10 s');
rollback to here;
select expires_at > clock_timestamp() + interval '50 s' as a_minute from presence.get('lobby');
savepoint here;
select (presence.upsert('lobby')).room as stays;
rollback to here;
select presence.heartbeat('lobby');
commit;
select expires_at between clock_timestamp() + interval '50 s' and clock_timestamp() + interval '1 min' as a_minute from presence.get('lobby');
-- entered, and over by the commit: both are published
begin;
select (presence.upsert('grace')).room as entered;
select presence.delete('grace', after => '50 ms');
select pg_sleep(0.1) is not null as later;
select count(*) from presence.get('grace');
commit;
select count(*) from presence.get('grace');
select test.wait_until('not exists (select from presence.member where room = ''grace'')');
select presence.wait_for_flush('10 s');
select event, reason from test.log(:before) where room = 'grace';

-- All connections of a member, and many members at once.
select count(presence.upsert('hall', connection_id => c)) from unnest(array['1', '2']) c;
select presence.delete('hall', connection_id => null, after => '10 s') as three;
select connection_id, expires_at < clock_timestamp() + interval '10 s' as leaves from presence.list('hall');
select presence.delete_many('[{"room": "hall", "connection_id": null, "after": "20 s"}, {"room": "hall", "connection_id": "2", "after": "00:00:05", "state": 1},
                              {"room": "hall", "connection_id": "3", "after": "0"}, {"room": "lobby", "after": null}, {"room": "nowhere", "after": "1 s"}]');
select connection_id, expires_at < clock_timestamp() + interval '5 s' as in_5, expires_at < clock_timestamp() + interval '20 s' as in_20 from presence.list('hall');
select presence.upsert_many('[{"room": "hall", "connection_id": "1"}, {"room": "hall", "connection_id": "2"}]');
select connection_id, expires_at < clock_timestamp() + interval '20 s' as leaves from presence.list('hall');
select presence.delete_all();

-- A session member can have a deadline, too.
select expires_at from presence.upsert('bound', session => true);
select presence.delete('bound', after => '20 s');
select expires_at - clock_timestamp() between '19 s' and '20.001 s' as leaves, ttl, last_seen_at < clock_timestamp() + interval '1 ms' as seen from presence.get('bound');
select presence.delete('bound', after => '1000 years');
select expires_at > clock_timestamp() + interval '900 years' as far from presence.get('bound');
select expires_at, last_seen_at < clock_timestamp() + interval '1 ms' as seen from presence.upsert('bound');
select presence.delete('bound');

-- Invalid times.
select (presence.upsert('lobby')).room as entered;
select * from test.error($$ select presence.delete('lobby', after => '-1 s') $$) \gx
select * from test.error($$ select presence.delete('nobody', after => '-1 us') $$) \gx
select code, detail from test.error($$ select presence.delete('lobby', after => '1000000 years') $$);
select * from test.error($$ select presence.delete_many('[{"room": "lobby"}, {"room": "lobby", "after": "-1 s"}]') $$) \gx
select code, message, detail from test.error($$ select presence.delete_many('[{"room": "lobby", "after": true}]') $$);
select code from test.error($$ select presence.delete('lobby', state => to_jsonb(repeat('x', 70000)), after => '1 s') $$);
begin read only;
select * from test.error($$ select presence.delete('lobby', after => '1 s') $$) \gx
rollback;
select presence.delete('lobby', after => null) as now;

-- Ownership.
select (presence.upsert('lobby', audience => '{any}')).room as entered;
set role regress_bob;
select * from test.error($$ select presence.delete('lobby', 'regress_alice', after => '1 s') $$) \gx
set role regress_gateway;
select presence.delete('lobby', 'regress_alice', after => '10 s', reason => 'removed');
select leave_reason from presence.member;
set role regress_alice;
select code from test.error($$ select presence.delete('lobby', after => '1 s', reason => 'removed') $$);
select presence.heartbeat('lobby');
select state from presence.update('lobby', '{"still": "here"}');
select leave_reason from presence.member;
select presence.delete('lobby', after => '10 s', reason => 'left');
select leave_reason from presence.member;
set role regress_gateway;
select presence.delete('lobby', 'regress_alice', state => '"thrown out"', after => '100 ms', reason => 'removed');
select test.wait_until('not exists (select from presence.member)');
select presence.wait_for_flush('10 s');
select state, reason from test.log(:before) where event = 'leave' and room = 'lobby' order by 2 desc limit 1;
-- with a service role that gives no reason, the reason is left
set role regress_alice;
select (presence.upsert('office')).room as entered;
set role regress_gateway;
select presence.delete('office', 'regress_alice', after => '50 ms');
select test.wait_until('not exists (select from presence.member)');
select presence.wait_for_flush('10 s');
select reason from test.log(:before) where event = 'leave' and room = 'office';

-- By DML on the columns.
set role regress_alice;
select presence.seq() as before \gset
insert into presence.member (room, state, leaves_at, last_word) values ('dml', '{}', clock_timestamp() + interval '10 s', '"bye"');
select expires_at = leaves_at as leaves, leaves_at < clock_timestamp() + interval '10 s' as then from presence.member;
insert into presence.member (room, leaves_at) values ('dml', null) on conflict (room, member_id, connection_id) do update set leaves_at = excluded.leaves_at;
select leaves_at, last_word, expires_at - last_seen_at = ttl as whole_lease from presence.member;
update presence.member set last_word = '"of no leave"', leave_reason = 'removed', deadline = -5;
select leaves_at, last_word, leave_reason, deadline > 0 as deadline from presence.member;
update presence.member set leaves_at = clock_timestamp() + interval '1 day', leave_reason = 'left';
select leaves_at > expires_at, leave_reason, deadline < -1 as fixed from presence.member;
select code, message, detail from test.error($$ update presence.member set leaves_at = 'infinity' $$);
select code, message, detail from test.error($$ update presence.member set leaves_at = '-infinity' $$);
select code, message from test.error($$ update presence.member set leave_reason = 'removed' $$);
select code, message from test.error($$ update presence.member set leave_reason = 'expired' $$);
select code, message from test.error($$ update presence.member set last_word = to_jsonb(repeat('x', 70000)) $$);
begin;
update presence.member set leaves_at = '2000-01-01';
select leaves_at > clock_timestamp() - interval '1 s' as not_in_the_past from presence.member;
select count(*) from presence.get('dml');
commit;
select test.wait_until('not exists (select from presence.member)');
select presence.wait_for_flush('10 s');
select event, state, reason from test.log(:before);
reset role;
