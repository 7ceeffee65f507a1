-- Direct DML on presence.member: the same rules and the same events as the functions.
set role regress_alice;
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset

-- INSERT: what is not given gets its default, and the columns that the trigger fills are not taken from the statement.
insert into presence.member (room) values ('lobby')
returning room, member_id, connection_id, user_id, status, state, metadata, audience, ttl,
          expires_at = last_seen_at + ttl as lease, version = generation as first;
insert into presence.member (room, member_id, connection_id, user_id, status, state, version, generation, joined_at,
                             updated_at, last_seen_at, expires_at, deadline, session, session_pid, key_hash)
values ('lobby', 'regress_alice', 'forged', 'regress_bob', '', '{"a": 1}', 7, 7, '2000-01-01', '2000-01-01', '2000-01-01',
        '2100-01-01', 9e15, 5, 6, '00000000-0000-0000-0000-000000000000')
returning user_id, status is null as no_status, state, version > 7 and generation = version as version,
          joined_at > '2020-01-01' and updated_at = joined_at and last_seen_at = joined_at as times,
          expires_at < now() + interval '1 h' as expires, deadline < 9e15 as deadline, session is null and session_pid is null as unbound,
          key_hash <> '00000000-0000-0000-0000-000000000000' as key_hash;
select connection_id, presence.heartbeat('lobby', connection_id => connection_id) as alive from presence.get('lobby');

-- Many rows; conflicts are for the user to handle.
insert into presence.member (room, connection_id, state)
select 'many', n::text, jsonb_build_object('n', n) from generate_series(1, 5) n;
select count(*) from presence.get('many');
select * from test.error($$ insert into presence.member (room, connection_id) values ('many', '1') $$);
insert into presence.member (room, connection_id, state) values ('many', '1', '"no"'), ('many', '6', '"yes"')
on conflict do nothing returning connection_id, state;
insert into presence.member as m (room, connection_id, state) values ('many', '1', '"first"'), ('many', '7', '"new"')
on conflict (room, member_id, connection_id) do update set state = excluded.state
returning connection_id, state, version = generation as new;

-- UPDATE: a new version and time if something visible changes; else only the lease.
select version, generation from presence.member where room = 'many' and connection_id = '2' \gset
update presence.member set state = '"other"', metadata = '{"b": 1}' where room = 'many' and connection_id = '2'
returning state, metadata, version > :version as newer, generation = :generation as same_stay, updated_at > joined_at as updated;
select version from presence.member where room = 'many' and connection_id = '2' \gset
update presence.member set status = status, version = 9, joined_at = 'epoch', updated_at = 'epoch', last_seen_at = 'epoch',
    expires_at = 'epoch', deadline = 0, session = 1, session_pid = 1, key_hash = gen_random_uuid(), generation = 3,
    user_id = 'regress_bob'
where room = 'many' and connection_id = '2'
returning user_id, version = :version as same_version, generation = :generation as same_stay, joined_at > 'epoch' and updated_at > 'epoch' as times,
    expires_at = last_seen_at + ttl as lease, session is null and session_pid is null as unbound;
select connection_id, presence.heartbeat('many', connection_id => '2') as alive from presence.get('many', connection_id => '2');
update presence.member set ttl = '5 min', status = '' where room = 'many' and connection_id = '2'
returning ttl, status is null as none, version > :version as newer, expires_at = last_seen_at + ttl as lease;
update presence.member set audience = array['room', 'any'] where room = 'many' and connection_id = '2' returning audience;
update presence.member set audience = null, state = null, metadata = null, ttl = null
where room = 'many' and connection_id = '2' returning audience, state, metadata, ttl;

-- The key is fixed.
select c, e.* from unnest(array['room', 'member_id', 'connection_id']) c,
    test.error(format($$ update presence.member set %I = 'x' where room = 'many' and connection_id = '2' $$, c)) e;

-- Names, ttl, sizes: the same errors as those of the functions.
select left(s, 60) as statement, e.code, e.message, e.detail from unnest(array[
    $$ insert into presence.member (room) values (null) $$,
    $$ insert into presence.member (room) values ('') $$,
    $$ insert into presence.member (room, connection_id) values ('x', e'\n') $$,
    $$ insert into presence.member (room, member_id) values ('x', 'regress_bob') $$,
    $$ insert into presence.member (room, ttl) values ('x', '0.5 s') $$,
    $$ insert into presence.member (room, audience) values ('x', '{everybody}') $$,
    $$ insert into presence.member (room, audience) values ('x', '{any,null}') $$,
    $$ insert into presence.member (room, status) values ('x', repeat('s', 256)) $$,
    $$ insert into presence.member (room, state) values ('x', to_jsonb(repeat('s', 70000))) $$,
    $$ update presence.member set ttl = '31 d' where room = 'many' $$,
    $$ update presence.member set audience = '{nobody}' where room = 'many' $$,
    $$ update presence.member set metadata = to_jsonb(repeat('s', 70000)) where room = 'many' $$
]) s, test.error(s) e;

-- Other users' members do not exist for the caller.
set role regress_bob;
update presence.member set state = '"mine"' where room = 'lobby' returning room;
delete from presence.member where room = 'lobby' returning room;
reset role;
set presence.member_ids = 'any';
set role regress_bob;
select * from test.error($$ insert into presence.member (room, member_id) values ('lobby', 'regress_alice') $$) \gx
select * from test.error($$ insert into presence.member (room, member_id) values ('lobby', 'regress_alice')
                            on conflict (room, member_id, connection_id) do update set state = '"mine"' $$) \gx
reset role;
reset presence.member_ids;

-- TRUNCATE is refused.
select * from test.error('truncate presence.member') \gx

-- DELETE of several rows, and a MERGE.
set role regress_alice;
delete from presence.member where room = 'many' and connection_id in ('3', '4') returning connection_id;
merge into presence.member m using (values ('5', true), ('6', false), ('8', false)) v (id, go)
    on m.room = 'many' and m.connection_id = v.id
    when matched and go then delete
    when matched then update set status = 'merged'
    when not matched then insert (room, connection_id, status) values ('many', v.id, 'new');
select connection_id, status from presence.get('many');

-- The events are the same as those of the functions.
delete from presence.member where room in ('lobby', 'many');
select presence.wait_for_flush('10 s');
select event, room, connection_id, count(*) from test.log(:before)
where room in ('lobby', 'many') group by 1, 2, 3 having event <> 'update' order by 2, 3, 1;
select room, connection_id, reason, connections from test.log(:before) where event = 'leave' and room = 'lobby';

-- COPY, as a role to which row-level security does not apply; restoring dumped rows makes them enter.
reset role;
copy presence.member (room, member_id, connection_id, user_id, state) from stdin;
copied	dora		dora	{"a": 1}
copied	dora	2	dora	{"a": 2}
copied	emil		emil	{"a": 3}
\.
select member_id, connection_id, user_id, state, presence.heartbeat('copied', member_id, connection_id) as alive
from presence.list('copied');
copy (select room, member_id, state from presence.member where room = 'copied' order by 1, 2, connection_id) to stdout;
delete from presence.member where room = 'copied';

-- In the replica role the values of the statement are kept: they come from another server.
begin;
set local session_replication_role = replica;
insert into presence.member (room, member_id, user_id, audience, version, generation, joined_at, updated_at, last_seen_at,
                             expires_at, ttl, deadline, key_hash)
select 'replica', 'dora', 'dora', '{any}', m.version, m.generation, '2020-01-01', '2020-01-02', '2020-01-03', 'infinity',
       '90 s', m.deadline, gen_random_uuid()
from (select 4000000000000000 as version, 4000000000000000 as generation, 1 as deadline) m
returning version = 4000000000000000 as version, joined_at = '2020-01-01' as joined_at, updated_at = '2020-01-02' as updated_at;
-- They are checked nevertheless: invalid ones could not be published.
insert into presence.member (room, member_id, user_id, audience) values ('replica', 'dora', 'dora', '{{any},{users}}');
rollback;
select count(*) from presence.member;
