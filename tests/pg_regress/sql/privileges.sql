-- Nothing is granted to PUBLIC; grant_access and revoke_access grant and revoke everything that is needed.
select p.oid::regprocedure from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and a.grantee = 0 order by 1;
select c.oid::regclass, a.privilege_type from pg_class c, aclexplode(c.relacl) a
where c.relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and a.grantee = 0;
select a.privilege_type from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'presence' and a.grantee = 0;

-- A role without any grant.
set role regress_nobody;
select s, e.code from unnest(array['select * from presence.online', 'select * from presence.member', 'select * from presence.event',
    'select presence.upsert(''r'')', 'select presence.user_id()', 'select * from presence.health', 'select * from _presence.secret']) s, test.error(s) e;
reset role;

-- Read only.
select presence.grant_access('regress_nobody', write => false);
set role regress_nobody;
select s, coalesce(e.code, e.message) from unnest(array['select * from presence.online', 'select * from presence.member', 'select * from presence.event',
    'select * from presence.list()', 'select * from presence.get(''r'')', 'select * from presence.occupancy()', 'select presence.state(''r'')',
    'select * from presence.changes(0)', 'select presence.user_id()', 'select presence.tokens()', 'select presence.channels()', 'select presence.heartbeat(''r'')',
    'select presence.upsert(''r'')', 'select presence.delete(''r'')', 'insert into presence.member (room) values (''r'')', 'delete from presence.member',
    'update presence.member set status = ''x''', 'truncate presence.member',
    'insert into presence.event (seq, event) values (1, ''x'')', 'select * from _presence.secret', 'select * from _presence._event_0',
    'select presence.sweep()', 'select presence.grant_access(''regress_nobody'')', 'select presence.revoke_access(''regress_alice'')']) s, test.error(s) e;
reset role;

-- They return whether they changed anything.
select presence.grant_access('regress_nobody', write => false) as again, presence.grant_access('regress_nobody') as more,
       presence.grant_access('regress_nobody', write => false) as less, presence.revoke_access('regress_nobody') as taken,
       presence.revoke_access('regress_nobody') as again;
grant select (room) on presence.member to regress_nobody;
select presence.revoke_access('regress_nobody') as one_column, presence.revoke_access('regress_nobody') as again;

-- Read and write; internals stay inaccessible.
select presence.grant_access('regress_nobody');
set role regress_nobody;
select s, coalesce(e.code, e.message) from unnest(array['select presence.upsert(''r'')', 'select presence.update(''r'')', 'select presence.heartbeat(''r'')',
    'select presence.delete(''r'')', 'select presence.delete_all()', 'insert into presence.member (room) values (''r'')',
    'update presence.member set status = ''x''', 'delete from presence.member', 'select presence.seq()', 'select presence.worker_pid()',
    'select presence.wait_for_flush(''10 s'')', 'truncate presence.member', 'select * from _presence.secret', 'select _presence._announce()',
    'select _presence._has_slot(gen_random_uuid())', 'select presence.grant_access(''regress_nobody'')',
    'alter table presence.member disable trigger all', 'create table presence.mine ()']) s, test.error(s) e;
reset role;

-- And nothing is left.
select presence.revoke_access('regress_nobody');
select p.oid::regprocedure from pg_proc p, aclexplode(p.proacl) a where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and a.grantee = 'regress_nobody'::regrole;
select c.oid::regclass from pg_class c, aclexplode(c.relacl) a where c.relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and a.grantee = 'regress_nobody'::regrole;
set role regress_nobody;
select e.code, e.message from test.error('select presence.user_id()') e;
reset role;

-- A role that is a member of a granted one has access, under its own name.
create role regress_staff;
create role regress_dora in role regress_staff;
select presence.grant_access('regress_staff');
set role regress_dora;
select member_id, user_id from presence.upsert('r', audience => '{role:regress_staff}');
select presence.tokens() @> '{any,users,user:regress_dora,role:regress_dora,role:regress_staff,room:r}' as tokens;
select presence.delete_all();
reset role;
select presence.revoke_access('regress_staff');
drop role regress_dora, regress_staff;

-- A name that needs quotes, and a hostile search_path.
create role "regress ""odd"" User";
select presence.grant_access('"regress ""odd"" User"');
create schema regress_trap;
grant all on schema regress_trap to public;
set role "regress ""odd"" User";
create function regress_trap.trapped(text, text) returns boolean language plpgsql as $$
    begin raise 'trapped, as %', current_user; end $$;
create function regress_trap.trapped_too(text[], text[]) returns boolean language plpgsql as $$
    begin raise 'trapped, as %', current_user; end $$;
create function regress_trap.trapped_numbers(bigint, integer) returns boolean language plpgsql as $$
    begin raise 'trapped, as %', current_user; end $$;
create operator regress_trap.= (leftarg = text, rightarg = text, function = regress_trap.trapped);
create function regress_trap.count() returns bigint language sql as 'select 1 / 0';
create operator regress_trap.&& (leftarg = text[], rightarg = text[], function = regress_trap.trapped_too);
create operator regress_trap.>= (leftarg = bigint, rightarg = integer, function = regress_trap.trapped_numbers);
create table regress_trap.member (); create table regress_trap.pg_extension ();
set search_path = regress_trap, pg_catalog;
select user_id, room from presence.upsert('r', '{"a": 1}');
select state from presence.update('r', '{"b": 2}');
select presence.heartbeat('r');
select member_id from presence.list('r');
select member_id from presence.get('r');
select * from presence.occupancy('r');
select presence.state('r') is not null as state;
select event from presence.changes(presence.seq());
select presence.delete('r');
select presence.delete_all();
reset search_path;
reset role;
select presence.revoke_access('"regress ""odd"" User"');
set client_min_messages = warning;
drop schema regress_trap cascade;
reset client_min_messages;
drop role "regress ""odd"" User";
