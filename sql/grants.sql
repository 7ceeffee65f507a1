-- Only the owner may do anything until the owner grants it. By default functions are executable by PUBLIC.
revoke all on all functions in schema presence, _presence from public;

-- Monitoring needs no superuser. pg_monitor itself is granted to nobody.
grant usage on schema presence to pg_monitor;
grant select on presence.health to pg_monitor;
grant execute on function _presence._health(), _presence._trouble(), _presence._fast_writes(), _presence._members(),
    _presence._node_name(), _presence._beat_age(), _presence._peer(text), _presence._is_heard(text),
    _presence._is_copying(), _presence._cluster_problems(), presence.cluster() to pg_monitor;
grant select on presence.node to pg_monitor;

create function _presence._granted(role regrole) returns text[]
    language sql stable parallel safe
begin atomic
    select coalesce(array_agg(format('%s %s %s %s', o.class, o.object, o.number, a.privilege_type)
                              order by o.class, o.object, o.number, a.privilege_type), '{}')
    from (select 'schema' as class, n.oid as object, 0 as number, n.nspacl as acl from pg_namespace n
          where n.oid operator(pg_catalog.=) any (array['presence'::regnamespace, '_presence'::regnamespace])
          union all
          select 'function', p.oid, 0, p.proacl from pg_proc p
          where p.pronamespace operator(pg_catalog.=) any (array['presence'::regnamespace, '_presence'::regnamespace])
          union all
          select 'table', c.oid, 0, c.relacl from pg_class c
          where c.relnamespace operator(pg_catalog.=) any (array['presence'::regnamespace, '_presence'::regnamespace])
          union all
          select 'column', t.attrelid, t.attnum, t.attacl from pg_attribute t
          where t.attrelid operator(pg_catalog.=) any (
              select c.oid from pg_class c
              where c.relnamespace operator(pg_catalog.=) any (array['presence'::regnamespace, '_presence'::regnamespace])
          )) o,
         aclexplode(o.acl) a
    where a.grantee operator(pg_catalog.=) _granted.role;
end;
comment on function _presence._granted(regrole) is 'What the role was granted of the extension, as text that can be compared.';

create function presence.grant_access(role regrole, write boolean default true) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    function_name regprocedure;
    before text[] := _presence._granted(role);
begin
    if not exists (select from pg_roles r where r.oid = role) then
        raise exception using errcode = '22023', message = 'invalid role', detail = 'There is no such role.';
    end if;
    execute format('grant usage on schema presence to %s', role);
    execute format('grant select on presence.member, presence.event, presence.room, _presence._last_seen, presence.shared, '
                   'presence.online, presence.last_seen, presence.shared_online to %s', role);
    if write then
        execute format('grant insert, update, delete on presence.member, presence.room to %s', role);
    end if;
    for function_name in
        select p.oid::regprocedure from pg_proc p
        where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and p.prorettype <> 'trigger'::regtype
          and p.proname not in ('grant_access', 'revoke_access', 'act_as', '_announce', '_health',
                                '_trouble', '_fast_writes', '_granted', '_has_slot', '_tell_room', '_members', '_beat_age', '_reads',
                                'cluster', '_cluster_problems', '_is_copying', '_peer')
    loop
        execute format('grant execute on function %s to %s', function_name, role);
    end loop;
    return _presence._granted(role) <> before;
end
$$;
comment on function presence.grant_access(regrole, boolean) is
    'Let a role use presence: USAGE on the schema; SELECT on member, event, room, online, last_seen, shared and '
    'shared_online, restricted by policies; INSERT, UPDATE and DELETE on member and room unless write is false; '
    'EXECUTE on the functions, which check the caller''s rights themselves. Not included: act_as, and health, which is '
    'for members of pg_monitor. For the owner of the extension. Repeat it after an upgrade that adds functions. '
    'Returns whether anything new was granted. Errors: 22023 or 42704 no such role; 42501 not the owner.';

create function presence.revoke_access(role regrole) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    before text[] := _presence._granted(role);
begin
    if not exists (select from pg_roles r where r.oid = role) then
        raise exception using errcode = '22023', message = 'invalid role', detail = 'There is no such role.';
    end if;
    execute format('revoke all on all functions in schema presence, _presence from %s', role);
    execute format('revoke all on all tables in schema presence, _presence from %s', role);
    execute format('revoke all on schema presence from %s', role);
    return _presence._granted(role) <> before;
end
$$;
comment on function presence.revoke_access(regrole) is
    'Revoke what presence.grant_access granted. Returns whether anything was revoked. Required before DROP ROLE. For '
    'the owner of the extension. Errors: 22023 or 42704 no such role; 42501 not the owner.';

-- The rest of the old functions, which sql/kept.sql begins.
create function _presence.grant_access(role regrole, write boolean default true) returns void
    language sql set search_path = pg_catalog, pg_temp
begin atomic
    select presence.grant_access(grant_access.role, grant_access.write);
end;
create function _presence.revoke_access(role regrole) returns void
    language sql set search_path = pg_catalog, pg_temp
begin atomic
    select presence.revoke_access(revoke_access.role);
end;
comment on function _presence.grant_access(regrole, boolean) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.revoke_access(regrole) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';

revoke all on function
    presence.grant_access(regrole, boolean), presence.revoke_access(regrole), _presence._granted(regrole),
    _presence.grant_access(regrole, boolean), _presence.revoke_access(regrole)
    from public;

select _presence._announce();
