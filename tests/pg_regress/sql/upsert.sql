-- presence.upsert: enter, or change what is there. NULL keeps the current value.
set role regress_alice;

-- Enter: what is not given gets its default.
select room, member_id, connection_id, user_id, status, state, metadata, audience, ttl,
       session_pid is null as unbound,
       joined_at = updated_at as just_joined, last_seen_at >= joined_at as seen, expires_at = last_seen_at + ttl as lease
from presence.upsert('lobby');

select (presence.upsert('lobby')).version as version \gset
select joined_at as joined, expires_at as expires from presence.get('lobby') \gset

-- Repeated, it is a heartbeat: version and updated_at stay, but the lease ends later.
select pg_sleep(0.01) is not null as later;
select version = :version as same_version, joined_at = :'joined' as same_stay, updated_at = :'joined' as untouched,
       expires_at > :'expires' as renewed
from presence.upsert('lobby');
select version = :version as same_version, expires_at > :'expires' as renewed from presence.get('lobby');

-- The same data written out is identical, too: keys in another order, the default audience, the default ttl.
select version as version from presence.upsert('lobby', '{"a": 1, "b": [true, null]}', status => 'online') \gset
select version = :version as identical
from presence.upsert('lobby', '{"b": [true,null], "a":1}', status => 'online', metadata => '{}', ttl => '90 s',
                     audience => '{room}');

-- A change: a new version, and what was not given is kept.
select version > :version as newer, status, state, metadata, joined_at = :'joined' as same_stay,
       updated_at > joined_at as updated
from presence.upsert('lobby', metadata => '{"name": "Alice"}');
select status, state, metadata from presence.upsert('lobby', '[1, 2]');
select status, state, metadata from presence.upsert('lobby', 'null');
select status, state, metadata from presence.upsert('lobby', status => 'away');

-- The empty string clears the status, also on enter.
select status is null as cleared, state from presence.upsert('lobby', status => '');
select version from presence.get('lobby') \gset
select version = :version as identical from presence.upsert('lobby', status => '');
select status is null as none from presence.upsert('empty', status => '');

-- ttl and audience are kept like the rest. Another ttl alone is not a change of the member.
select ttl from presence.upsert('lobby', ttl => '10 min');
select ttl, expires_at - last_seen_at as lease, updated_at < last_seen_at as not_updated
from presence.upsert('lobby', status => '');
select audience from presence.upsert('lobby', audience => '{}');
select audience from presence.upsert('lobby', audience => array['user:bob', 'any', 'room', 'user:bob', 'room:office']);
select audience, ttl from presence.upsert('lobby', '{}');

-- The state in one room does not affect other rooms.
select room, status, state, ttl from presence.upsert('office', '{"desk": 7}');
select room, state from presence.list() order by room;

-- Several connections are several members. A NULL connection_id is the empty one.
select connection_id, state from presence.upsert('office', '{"desk": 8}', connection_id => 'tab 2');
select connection_id, state from presence.upsert('office', '{"desk": 9}', connection_id => null);
select connection_id, state from presence.get('office');

-- Any text is a valid name.
select room, connection_id from presence.upsert(E'caf\u00e9 \U0001F600 %_\\ ''"', connection_id => 'a''b"\\');
select count(*) from presence.get(E'caf\u00e9 \U0001F600 %_\\ ''"', connection_id => 'a''b"\\');
select length(room) from presence.upsert(repeat(E'\u00e9', 255));

-- A user may write its own name, but not another user's.
select member_id, user_id from presence.upsert('lobby', member_id => 'regress_alice');
select * from test.error($$ select presence.upsert('lobby', member_id => 'regress_bob') $$) \gx
reset role;
set presence.member_ids = 'any';
set role regress_alice;
select member_id, user_id from presence.upsert('lobby', member_id => 'The Alice');

-- Another user's member is refused in the same way, whether it is visible or not.
set role regress_bob;
select * from test.error($$ select presence.upsert('lobby', member_id => 'regress_alice') $$) \gx
select * from test.error($$ select presence.upsert('office', member_id => 'regress_alice', connection_id => 'tab 2') $$) \gx
select member_id, user_id from presence.upsert('lobby', member_id => 'Bob');
reset role;
reset presence.member_ids;

-- A service role acts for others: member_id is then theirs. Without a user_id the owner stays as it is.
set role regress_gateway;
select member_id, user_id from presence.upsert('lobby', '{"from": "gateway"}', user_id => 'dora');
select member_id, user_id, state from presence.upsert('lobby', '{"x": 1}', member_id => 'dora');
select member_id, user_id from presence.upsert('lobby', member_id => 'bot', user_id => 'dora');
select member_id, user_id, audience from presence.upsert('lobby', member_id => 'regress_alice', status => 'seen');
select member_id, user_id from presence.upsert('lobby');
select member_id, user_id from presence.upsert('lobby', member_id => 'bot', user_id => 'regress_carol');
reset role;

-- Bound to the session: the lease has no end, unless a ttl is given. The member leaves when the session ends.
set role regress_alice;
select presence.seq() as before \gset
select ttl, expires_at, session_pid = pg_backend_pid() as bound from presence.upsert('session', session => true);
select ttl, expires_at = last_seen_at + ttl as lease, session_pid = pg_backend_pid() as bound
from presence.upsert('session', connection_id => '2', ttl => '1 h', session => true);
select ttl, session_pid is null as unbound from presence.upsert('session', connection_id => '3');
select version from presence.get('session', connection_id => '') \gset
select version = :version as identical from presence.upsert('session', session => true);
select session_pid is null as unbound, expires_at = last_seen_at + ttl as lease, ttl
from presence.upsert('session', connection_id => '2', session => false);
select session_pid = pg_backend_pid() as bound, ttl, expires_at from presence.upsert('session', connection_id => '4', session => true);
select session_pid is null as unbound, ttl from presence.upsert('session', connection_id => '4', session => false);
select connection_id, session_pid = pg_backend_pid() as bound from presence.get('session');
\c -
select test.wait_until($$ not exists (select from presence.member where room = 'session' and connection_id = '') $$);
select presence.wait_for_flush('10 s');
select connection_id from presence.get('session', 'regress_alice');
select event, connection_id, connections, reason from test.log(:before) where room = 'session' and event = 'leave';

select presence.delete_all(u) from unnest(array['regress_alice', 'regress_bob', 'regress_carol', 'regress_gateway', 'dora']) u;
select count(*) from presence.online;
