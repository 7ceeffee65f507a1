-- presence.delete and delete_all: leave.
set role regress_alice;

select presence.delete('lobby') as absent;
select (presence.upsert('lobby')).room as entered;
select presence.delete('lobby') as one, presence.delete('lobby') as then_none;

-- One connection, or all of them with NULL.
select count(presence.upsert('lobby', connection_id => c)) from unnest(array['', '1', '2', '3']) c;
select presence.delete('lobby', connection_id => '2');
select connection_id from presence.get('lobby');
select presence.delete('lobby', connection_id => null);
select presence.delete('lobby', connection_id => null) as then_none;
select count(*) from presence.get('lobby');

-- A rolled-back leave has no effect.
select (presence.upsert('lobby', '{"a": 1}')).room as entered;
begin;
select presence.delete('lobby');
select count(*) as within from presence.get('lobby');
rollback;
select state from presence.get('lobby');
begin;
savepoint here;
select presence.delete('lobby');
rollback to here;
commit;
select state, presence.heartbeat('lobby') from presence.get('lobby');

-- The last word, and the reason. The event's state is not the row's.
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset
select presence.delete('lobby', state => '{"bye": true}');
select (presence.upsert('lobby')).room as entered;
select presence.delete('lobby', reason => 'left');
select presence.wait_for_flush('10 s');
select event, state, connections, reason from test.log(:before);

-- A service role may give a reason; without one, others are removed by it, and its own member has left.
select count(presence.upsert('lobby', connection_id => c)) from unnest(array['1', '2', '3', '4']) c;
reset role;
set role regress_gateway;
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset
select presence.delete('lobby', 'regress_alice', '1'), presence.delete('lobby', 'regress_alice', '2', reason => 'disconnected'),
       presence.delete('lobby', 'regress_alice', '3', reason => 'left'),
       presence.delete('lobby', 'regress_alice', '4', '"so long"', 'removed');
select (presence.upsert('lobby')).room as entered;
select presence.delete('lobby');
select presence.wait_for_flush('10 s');
select event, member_id, connection_id, state, connections, reason from test.log(:before) where event = 'leave';
reset role;

-- Deleting another user's member is refused; that nobody is there is not an error.
set role regress_alice;
select (presence.upsert('lobby', audience => '{any}')).room as entered;
select (presence.upsert('office', audience => '{}')).room as entered;
set role regress_bob;
select * from test.error($$ select presence.delete('lobby', 'regress_alice') $$) \gx
select * from test.error($$ select presence.delete('office', 'regress_alice') $$) \gx
select presence.delete('lobby', 'regress_carol') as absent;
select * from test.error($$ select presence.delete('lobby', 'regress_alice', null) $$) \gx
reset role;
select room from presence.online order by room;

-- Sign-out: everywhere, or of one connection.
set role regress_alice;
select count(presence.upsert(r, connection_id => c)) from unnest(array['a', 'b', 'c']) r, unnest(array['1', '2']) c;
select presence.delete_all(connection_id => '2');
select room, connection_id from presence.list();
set role regress_bob;
select (presence.upsert('a')).room as entered;
select * from test.error($$ select presence.delete_all('regress_alice') $$) \gx
select presence.delete_all('regress_bob') as own_name;
select presence.delete_all() as then_none;
reset role;
set role regress_gateway;
select presence.delete_all('regress_alice', '1'), presence.delete_all('nobody');
select presence.delete_all('regress_alice');
reset role;
select count(*) from presence.member;

-- Slots: none is kept after everybody has left, in whatever way. A tombstone may stay for a minute.
select presence.wait_for_flush('10 s');
select test.wait_until('(select slots_used from presence.health) = 0');
set role regress_alice;
select (presence.upsert('lobby')).room as entered;
begin;
select presence.delete('lobby');
select (presence.upsert('lobby')).room as entered;
select presence.delete('lobby');
commit;
select count(*) from presence.get('lobby');
reset role;
select presence.wait_for_flush('10 s');
select slots_used <= 1 as none_or_a_tombstone from presence.health;
