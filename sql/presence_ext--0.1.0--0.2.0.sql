-- From 0.1.0 to 0.2.0. A name without a schema is PostgreSQL's own.
set local search_path = pg_catalog, pg_temp;

-- New SQL calls the new library: it must have been loaded.
do $$ begin
    if (select library_version from presence._health()) <> '0.2.0' then
        raise exception 'the server still runs another version of the library presence_ext'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Restart the server, then update again.';
    end if;
end $$;

create table presence._origin (shape text not null);
alter table presence._origin enable row level security;

comment on table presence._origin is 'all that takes part in a write of member, as the extension made it';

create or replace function presence._shape(relation regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select concat_ws(' ', c.relrowsecurity, c.relforcerowsecurity, c.relhasrules, c.relnatts, c.relchecks,
        (select string_agg(i.indexrelid::regclass::text, ' ' order by i.indexrelid::regclass::text)
         from pg_catalog.pg_index i
         where i.indrelid = relation
           and (i.indexprs is not null or i.indpred is not null or i.indisexclusion or not i.indimmediate)),
        (select string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles,
                                     pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                                     pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)), '; ' order by p.polname)
         from pg_catalog.pg_policy p where p.polrelid = relation),
        (select string_agg(concat_ws(' ', t.tgname, t.tgtype, t.tgenabled, t.tgfoid::regprocedure), '; '
                           order by t.tgname)
         from pg_catalog.pg_trigger t where t.tgrelid = relation))
    from pg_catalog.pg_class c join pg_catalog.pg_am a on a.oid = c.relam and a.amname = 'heap'
    where c.oid = relation;
end;

comment on function presence._shape(regclass) is
    'All that takes part in a write of a table, as text: policies, triggers, rules, constraints; NULL if it is no '
    'heap.';

comment on function presence._full_occupancy(text) is
    'The numbers of a room: of all members, if its count_audience lets the caller have them; else of those whom the '
    'built-in policies show the caller. No row where there are other policies.';

-- What 0.1.0 made: unless somebody has added to it, that is what there is.
insert into presence._origin
select presence._shape('presence.member')
from presence.secret s
where s.policies = presence._policies('presence.member')
  and (select count(*) from pg_policy p where p.polrelid = 'presence.member'::regclass) = 4
  and (select count(*) from pg_trigger t where t.tgrelid = 'presence.member'::regclass) = 3
  and (select count(*) from pg_index i where i.indrelid = 'presence.member'::regclass) = 3
  and (select not c.relhasrules and c.relchecks = 0 and not c.relforcerowsecurity from pg_class c
       where c.oid = 'presence.member'::regclass);

comment on function presence._tell_room(text, jsonb, text[]) is 'Make a room event, once this transaction is committed, if metadata is '
    'within presence.max_state_size (54000).';

comment on function presence.set_room(text, jsonb, jsonb, text[], text[], interval, integer, boolean) is
    'Make or change the settings of a room; NULL keeps what it has (to set a column to NULL, UPDATE the table). '
    'patch is a JSON merge patch (RFC 7396) on metadata. A change of metadata is a room event. For service roles '
    'and whoever may manage the room (42501). Errors: 22023 invalid values; 54000 metadata too large.';

create or replace function presence._trouble(out last_error_at timestamptz, out failing_since timestamptz) returns setof record
    language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'presence_trouble';

comment on function presence._trouble() is 'When the last error of presence.health was, and since when one persists.';

create or replace view presence.health as
select h.library_version,
       (select e.extversion from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'presence_ext')
           as extension_version,
       h.worker_pid, h.worker_state,
       (select count(*) from presence.member) as members,
       h.slots_used, h.slots_max, h.events_buffered_bytes, h.event_buffer_bytes, h.events_published,
       h.events_dropped, h.notifications_sent, h.heartbeats, h.expired, h.last_sweep_at, h.sweep_lag, h.resyncs,
       h.sink_position, h.sink_lag, h.last_error, t.last_error_at, t.failing_since
from presence._health() h cross join presence._trouble() t;

comment on view presence.health is
    'One row: versions, the worker (none, starting, running, yielded, absent), rows of members, lease slots used '
    'and there are, the event buffer, counters since the server started, the last error of the worker or the sink '
    'and its time, since when something has gone wrong at each attempt (NULL: all is well). '
    'Members of pg_monitor may read it.';

grant usage on schema presence to pg_monitor;

grant select on presence.health to pg_monitor;

grant execute on function presence._health() to pg_monitor;

-- New functions are executable by PUBLIC unless somebody says otherwise.
revoke all on function
    presence._shape
    from public;

grant execute on function presence._health(), presence._trouble() to pg_monitor;

create or replace function presence.grant_access(role regrole, write boolean default true) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    function_name regprocedure;
begin
    if not exists (select from pg_roles r where r.oid = role) then
        raise exception using errcode = '22023', message = 'invalid role', detail = 'There is no such role.';
    end if;
    execute format('grant usage on schema presence to %s', role);
    execute format('grant select on presence.member, presence.event, presence.room, presence._last_seen, '
                   'presence.online, presence.last_seen to %s', role);
    if write then
        execute format('grant insert, update, delete on presence.member, presence.room to %s', role);
    end if;
    for function_name in
        select p.oid::regprocedure from pg_proc p
        where p.pronamespace = 'presence'::regnamespace and p.prorettype <> 'trigger'::regtype
          and p.proname not in ('grant_access', 'revoke_access', '_announce', '_claim', '_health', '_trouble', '_policies',
                                '_has_slot', '_tell_room')
    loop
        execute format('grant execute on function %s to %s', function_name, role);
    end loop;
end
$$;

create or replace function presence.revoke_access(role regrole) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_roles r where r.oid = role) then
        raise exception using errcode = '22023', message = 'invalid role', detail = 'There is no such role.';
    end if;
    execute format('revoke all on all functions in schema presence from %s', role);
    execute format('revoke all on all tables in schema presence from %s', role);
    execute format('revoke all on schema presence from %s', role);
end
$$;

-- New functions are executable by PUBLIC unless somebody says otherwise.
revoke all on function
    presence._trouble
    from public;
