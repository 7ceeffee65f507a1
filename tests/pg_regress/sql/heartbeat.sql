-- presence.heartbeat and heartbeat_many: proof of life.
set role regress_alice;

select presence.heartbeat('lobby') as not_here;
select version, expires_at as expires, updated_at as updated from presence.upsert('lobby', '{"a": 1}', ttl => '1 h') \gset
select pg_sleep(0.01) is not null as later;
select presence.heartbeat('lobby') as renewed;
select version = :version as same_version, updated_at = :'updated' as untouched, expires_at > :'expires' as later_end,
       last_seen_at > updated_at as seen, expires_at = last_seen_at + ttl as lease
from presence.get('lobby');

-- The row is not written, no transaction id is taken.
begin;
select xmin, ctid from presence.member where room = 'lobby' \gset
select presence.heartbeat('lobby');
select xmin = :'xmin' and ctid = :'ctid' as not_written from presence.member where room = 'lobby';
select pg_current_xact_id_if_assigned() is null as no_transaction_id;
commit;

-- It works in a read-only transaction, too; and it survives a rollback, because it is not data.
begin read only;
select expires_at as expires from presence.get('lobby') \gset
select pg_sleep(0.01) is not null as later;
select presence.heartbeat('lobby') as renewed;
rollback;
select expires_at > :'expires' as counts from presence.get('lobby');

-- True inside the transaction that entered, false after its own leave, true after entering again.
begin;
select presence.heartbeat('office') as before;
select (presence.upsert('office')).room as entered;
select presence.heartbeat('office') as within;
savepoint here;
select presence.delete('office');
select presence.heartbeat('office') as after_leave;
rollback to here;
select presence.heartbeat('office') as as_before;
select presence.delete('office');
select (presence.upsert('office')).room as entered;
select presence.heartbeat('office') as again;
rollback;
select presence.heartbeat('office') as never_was;

-- A heartbeat is not undone with the savepoint, but the entry is.
begin;
savepoint here;
select (presence.upsert('office')).room as entered;
select presence.heartbeat('office') as within;
rollback to here;
select presence.heartbeat('office') as gone;
commit;

-- Only the caller's own members, each connection separately.
select (presence.upsert('lobby', connection_id => '2')).room as entered;
select presence.heartbeat('lobby', connection_id => '2') as second, presence.heartbeat('lobby', connection_id => '3') as third,
       presence.heartbeat('lobby', connection_id => null) as null_is_empty;
set role regress_bob;
select presence.heartbeat('lobby', 'regress_alice') as another;
select presence.heartbeat('lobby') as own;
reset role;
set role regress_gateway;
select presence.heartbeat('lobby', 'regress_alice') as any_for_service, presence.heartbeat('lobby', 'nobody') as nobody;
reset role;

-- Many at once: it returns the ones that are not there.
set role regress_alice;
select expires_at as expires from presence.get('lobby', connection_id => '2') \gset
select pg_sleep(0.01) is not null as later;
select * from presence.heartbeat_many(array['lobby', 'nowhere', 'lobby']);
select * from presence.heartbeat_many(array['lobby', 'lobby', 'lobby'], connection_ids => array['', '2', '3']);
select expires_at > :'expires' as renewed from presence.get('lobby', connection_id => '2');
select * from presence.heartbeat_many(array['lobby', 'office'], array['regress_alice', 'regress_alice']);
select * from presence.heartbeat_many('{}');
select * from presence.heartbeat_many('{}', '{}', '{}');
set role regress_bob;
select * from presence.heartbeat_many(array['lobby', 'lobby'], array['regress_alice', 'regress_bob'], array['', '']);
reset role;

-- A change in between is kept: a heartbeat reverts nothing.
set role regress_alice;
begin;
select version > :version as newer from presence.upsert('lobby', '{"a": 2}', ttl => '2 h');
select presence.heartbeat('lobby') as renewed;
commit;
select state, ttl, expires_at = last_seen_at + ttl as lease from presence.get('lobby', connection_id => '');

-- Heartbeats make no events.
select presence.wait_for_flush('10 s');
select presence.seq() as seq \gset
select presence.heartbeat('lobby');
select (presence.upsert('lobby', '{"a": 2}')).room as identical;
select (presence.upsert('lobby', ttl => '3 h')).room as longer;
select presence.wait_for_flush('10 s');
select presence.seq() = :seq as silent;

select presence.delete_all();
