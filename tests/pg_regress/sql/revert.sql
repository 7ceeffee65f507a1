-- revert_after: what a call changes in status and state reverts by itself.

-- What is noted, without the times.
create function test.notes(room text) returns table (status text, state jsonb, will_be jsonb) language sql as $$
    select m.status, m.state,
           case when m.reverts is not null then
               jsonb_strip_nulls(jsonb_build_object(
                   'status', case when m.reverts ? 'status' then coalesce(m.reverts #> '{status,to}', '"none"') end,
                   'whole', m.reverts #> '{whole,to}'))
               || coalesce((select jsonb_object_agg(k.key, coalesce(k.value -> 'to', '"none"'))
                            from jsonb_each(m.reverts -> 'state') k), '{}') end
    from presence.member m where m.room = notes.room
$$;

create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;

set role regress_alice;
-- On enter: reverts to {} and no status. Metadata does not revert.
select status, state, metadata from presence.upsert('v', '{"typing": true}', status => 'busy', metadata => '{"name": "A"}', revert_after => '1 h');
select * from test.notes('v');
-- What is set again permanently stays, and only that.
select status, state from presence.update('v', '{"typing": true}');
select * from test.notes('v');
select status, state from presence.update('v', status => 'busy');
select * from test.notes('v');
-- Setting the current value changes nothing, so there is nothing to undo.
select status, state from presence.update('v', '{"typing": true}', status => 'busy', revert_after => '1 h');
select * from test.notes('v');
-- The first old value is kept, whatever follows.
select status, state from presence.update('v', '{"mood": 1, "typing": null}', status => 'away', revert_after => '1 h');
select status, state from presence.update('v', '{"mood": 2}', status => '', revert_after => '2 h');
select * from test.notes('v');
-- Back to it: nothing to undo.
select status, state from presence.update('v', '{"mood": null, "typing": true}', status => 'busy', revert_after => '1 h');
select * from test.notes('v');
-- upsert sets the whole state: missing keys are removed temporarily, too.
select status, state from presence.upsert('v', '{"a": 1, "b": {"c": [1]}}', revert_after => '1 h');
select * from test.notes('v');
select status, state from presence.update('v', '{"b": {"d": 2}}', revert_after => '1 h');
select * from test.notes('v');
-- NULL keeps the value and what is noted.
select status, state from presence.upsert('v', metadata => '{}');
select * from test.notes('v');
select status, state from presence.upsert('v', '{"a": 1, "b": {"c": [1], "d": 2}}');
select * from test.notes('v');
-- A state that is not an object is one unit.
select state from presence.upsert('v', '42', revert_after => '1 h');
select * from test.notes('v');
select state from presence.upsert('v', '[42]', revert_after => '1 h');
select * from test.notes('v');
select state from presence.update('v', '{"x": 1}', revert_after => '1 h');
select * from test.notes('v');
select state from presence.update('v', '{"y": 1}');
select * from test.notes('v');
-- If nothing is set, there is nothing to undo.
select status, state from presence.upsert('v', revert_after => '1 h');
select status, state from presence.update('v', '{}', metadata => '{"name": "B"}', revert_after => '1 h');
select * from test.notes('v');
-- Notes are rolled back with the change that they belong to.
begin;
select state from presence.update('v', '{"z": 1}', revert_after => '1 h');
savepoint s;
select state from presence.update('v', '{"z": 1}');
rollback to s;
select * from test.notes('v');
rollback;
select * from test.notes('v');
-- Keys of all kinds.
select state from presence.update('v', '{"": 1, "ключ \" 🦀": 2, "at": 3, "to": 4}', revert_after => '1 h');
select * from test.notes('v');
select presence.delete('v');

-- upsert_many takes it, too.
select presence.upsert_many('[{"room": "v", "state": {"a": 1}}]'), presence.upsert_many('[{"room": "v", "patch": {"a": 2}, "status": "busy", "revert_after": "1 h"}]');
select * from test.notes('v');

-- DML: what a statement sets stays.
update presence.member set metadata = '{"name": "C"}' where room = 'v';
select * from test.notes('v');
update presence.member set status = 'busy' where room = 'v';
select * from test.notes('v');
update presence.member set state = '{"a": 2}' where room = 'v';
select * from test.notes('v');
-- and DML cannot make notes
update presence.member set reverts = '{"run": 1, "offset": 0, "status": {"at": 1}}' where room = 'v';
insert into presence.member (room, connection_id, status, reverts) values ('v', '2', 'here', '{"run": 1, "offset": 0, "status": {"at": 1}}');
select status, state, reverts from presence.member where room = 'v' order by connection_id;

-- An identical upsert still only renews, and a change of the notes alone makes no event.
select version from presence.update('v', '{"a": 3}', revert_after => '1 h') \gset
select version = :version as renewed from presence.upsert('v');
reset role;
select test.flushed() as before \gset
set role regress_alice;
select version > :version as written from presence.update('v', '{"a": 3}', revert_after => '1 h');
select version > :version as written from presence.update('v', '{"a": 3}');
reset role;
select test.flushed() = :before as silent;

-- Errors.
set role regress_alice;
select i, e.* from unnest(array['0', '-1 s', '-1 month', '102 years', '178000000 years']) i,
    test.error(format('select presence.upsert(%L, %L, revert_after => %L)', 'v', '{"late": true}', i)) e;
select i, e.* from unnest(array['0', '-1 s', 'soon']) i,
    test.error(format('select presence.update(%L, %L, revert_after => %L)', 'v', '{"late": true}', i)) e;
select m, e.code, e.message, e.detail from unnest(array['[{"room": "v"}, {"room": "v", "revert_after": "0"}]', '[{"room": "v", "revert_after": [5]}]']) m,
    test.error(format('select presence.upsert_many(%L::jsonb)', m)) e;
select state from presence.get('v', connection_id => '');
-- Both the current state and what it will revert to must be within the limit.
select pg_column_size(state) > 0 as fits from presence.upsert('v', jsonb_build_object('long', repeat('x', 40000)));
select e.code, e.detail from test.error($$ select presence.update('v', jsonb_build_object('long', null, 'other', repeat('y', 40000)), revert_after => '1 h') $$) e;
select state is not null as fits from presence.update('v', '{"long": null}', revert_after => '1 h');
select e.code, e.detail from test.error($$ select presence.update('v', jsonb_build_object('other', repeat('y', 40000))) $$) e;
select e.code, e.detail from test.error($$ select presence.upsert('v', to_jsonb(repeat('y', 70000)), revert_after => '1 h') $$) e;
select jsonb_typeof(state) as fits from presence.upsert('v', to_jsonb(repeat('y', 60000)), revert_after => '1 h');
select presence.delete('v', connection_id => null);

-- At the given time it is undone for all readers, and the worker publishes one event.
reset role;
select test.flushed() as before \gset
set role regress_bob;
select state from presence.upsert('undone');
set role regress_alice;
select state from presence.upsert('undone', '{"x": 1}', status => 'online');
select status, state from presence.update('undone', '{"typing": true, "x": null}', status => 'busy', revert_after => '0.3 s');
set role regress_bob;
select test.wait_until($$ status = 'online' from presence.get('undone', 'regress_alice') $$);
select status, state from presence.get('undone', 'regress_alice');
select user_id, status, state from presence.users('undone');
select jsonb_path_query_array(presence.state('undone'), '$.regress_alice[*].x') as x;
select test.wait_until(format('count(*) >= 4 from presence.changes(%s) where event <> %L', :before, 'position'));
select event, member_id, status, state from presence.changes(:before) where event <> 'position' order by seq;
select event, status, state from presence.history('undone', member_id => 'regress_alice', direction => 'forwards');
reset role;
select status, state, reverts from presence.member where room = 'undone' and member_id = 'regress_alice';
-- The revert renewed nothing.
select updated_at > last_seen_at as later, expires_at - last_seen_at = ttl as same from presence.online where room = 'undone' and member_id = 'regress_alice';
select presence.delete_room('undone');
drop function test.notes(text), test.flushed();
