\echo Use "ALTER EXTENSION presence_ext UPDATE TO '0.3.0'" to load this file. \quit
-- From 0.2.0 to 0.3.0. A name without a schema is PostgreSQL's own.
set local search_path = pg_catalog, pg_temp;

-- New SQL calls the new library: it must have been loaded.
do $$ begin
    if (select pg_catalog.string_to_array(library_version, '.')::integer[] from presence._health()) < '{0,3,0}' then
        raise exception 'the server still runs an older version of the library presence_ext'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Restart the server, then update again.';
    end if;
end $$;

-- Locks everything that is changed below first. A session that holds one of these and wants another gets it: we release
-- all of them before the server checks for a deadlock, and try again. So sessions that use presence meanwhile wait, and
-- none fails.
do $$
declare
    most integer := (select setting::integer from pg_settings where name = 'lock_timeout');
    since timestamptz := clock_timestamp();
begin
    perform set_config('lock_timeout', greatest(setting::integer / 10, 1)::text, true)
    from pg_settings where name = 'deadlock_timeout';
    loop
        begin
            lock table presence.health, presence.online, presence.event, presence._last_seen, presence._sink,
                       presence.secret, presence.member in access exclusive mode;
            exit;
        exception when lock_not_available then
            if most > 0 and clock_timestamp() > since + most * interval '1 ms' then
                raise;
            end if;
        end;
        perform pg_sleep(0.05);
    end loop;
    perform set_config('lock_timeout', most::text, true);
end $$;

-- These compared policies as text.
alter table presence.secret drop column policies;
drop table presence._origin;
drop function presence._shape(regclass);
drop function presence._policies(regclass);

-- presence._room_before does this now.
drop function presence._audience(text[], text);
drop function presence._check_ttl(interval);
drop function presence._next_version();

-- The internals of the extension. Only the owner has access.
create schema _presence;
comment on schema _presence is 'internals of presence_ext; for the extension only';

-- Only the extension may ask about a lease by its key: whoever has seen a key once would learn of every later stay. A
-- stored query of this kind, in a view for example, would go on asking.
do $$
declare
    dependent text;
begin
    select pg_describe_object(d.classid, d.objid, d.objsubid) into dependent
    from pg_depend d
    where d.refclassid = 'pg_proc'::regclass and d.deptype = 'n'
      and d.refobjid in ('presence._expires_at'::regproc, 'presence._last_seen_at'::regproc,
                         'presence._is_alive'::regproc, 'presence._claim'::regproc, 'presence._has_slot'::regproc)
      and not (d.classid = 'pg_rewrite'::regclass
               and d.objid = (select r.oid from pg_rewrite r where r.ev_class = 'presence.online'::regclass))
    limit 1;
    if found then
        raise exception using errcode = '2BP01', message = 'a function that 0.3.0 closes is still used',
            detail = format('%s calls presence._expires_at, _last_seen_at, _is_alive, _claim or _has_slot.', dependent),
            hint = 'Drop it, or let it read the view presence.online instead; then update again.';
    end if;
end $$;

-- Other stored references to the rest (grants, policies, bodies of functions) go by oid, so they stay valid.
do $$
declare
    made record;
begin
    for made in
        select 'function' as kind, p.oid::regprocedure::text as name
        from pg_proc p
        where p.pronamespace = 'presence'::regnamespace and starts_with(p.proname, '_')
        union all
        select 'table', c.oid::regclass::text
        from pg_class c
        where c.relnamespace = 'presence'::regnamespace and c.relkind = 'r'
          and (starts_with(c.relname, '_') or c.relname = 'secret')
    loop
        execute format('alter %s %s set schema _presence', made.kind, made.name);
    end loop;
end $$;
drop function _presence._claim(uuid, bigint, bigint, bigint, bigint);

-- These have other arguments now, or return something. Stored calls go on using the old ones.
alter function presence.upsert(text, jsonb, text, text, text, jsonb, interval, text[], boolean, text)
    set schema _presence;
alter function presence.update(text, jsonb, text, text, text, jsonb, text[]) set schema _presence;
alter function presence.delete(text, text, text, jsonb, text) set schema _presence;
alter function presence.act_as(text, text[]) set schema _presence;
alter function presence.forget(text) set schema _presence;
alter function presence.grant_access(regrole, boolean) set schema _presence;
alter function presence.revoke_access(regrole) set schema _presence;
alter function presence.rotate_channels(text) set schema _presence;
alter function presence.unlisten(text) set schema _presence;
comment on function _presence.upsert(text, jsonb, text, text, text, jsonb, interval, text[], boolean, text) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.update(text, jsonb, text, text, text, jsonb, text[]) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.delete(text, text, text, jsonb, text) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.act_as(text, text[]) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.forget(text) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.rotate_channels(text) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.unlisten(text) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';

-- Like member, with the same triggers and policies, and always empty: member is compared with it, to detect what others
-- have added.
create unlogged table _presence.member_twin (
    room           text        not null,
    member_id      text        not null,
    connection_id  text        not null,
    user_id        text        not null,
    status         text,
    state          jsonb       not null,
    metadata       jsonb       not null,
    audience       text[]      not null,
    version        bigint      not null,
    generation     bigint      not null,
    joined_at      timestamptz not null,
    updated_at     timestamptz not null,
    last_seen_at   timestamptz not null,
    expires_at     timestamptz,
    ttl            interval,
    deadline       bigint      not null,
    session        bigint,
    session_pid    integer,
    key_hash       uuid        not null,
    leaves_at      timestamptz,
    last_word      jsonb,
    leave_reason   text,
    reverts        jsonb,
    primary key (room, member_id, connection_id)
) using heap;
create index member_twin_user_id_room_idx on _presence.member_twin (user_id, room);
create index member_twin_key_hash_idx on _presence.member_twin (key_hash);
create index member_twin_audience_idx on _presence.member_twin using gin (audience) with (gin_pending_list_limit = 256);
alter table _presence.member_twin enable row level security;
comment on table _presence.member_twin is
    'How the extension made presence.member: verbs go past the executor only while the two are alike.';

create trigger presence_before before insert or update or delete on _presence.member_twin
    for each row execute function _presence._member_before();
create trigger presence_after after insert or update or delete on _presence.member_twin
    for each row execute function _presence._member_after();
create trigger presence_truncate before truncate on _presence.member_twin
    for each statement execute function _presence._member_before();
alter table _presence.member_twin enable always trigger presence_before;
alter table _presence.member_twin enable always trigger presence_after;
alter table _presence.member_twin enable always trigger presence_truncate;

create policy member_read on _presence.member_twin for select using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or (audience operator(pg_catalog.&&) (select presence.tokens()) and _presence._may(room, 'read'))
);
create policy member_enter on _presence.member_twin for insert with check (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
);
create policy member_change on _presence.member_twin for update using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
);
create policy member_leave on _presence.member_twin for delete using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or _presence._may(room, 'manage')
);

create function presence.may(room text, action text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_allows';
comment on function presence.may(text, text) is
    'Whether the caller may do this in the room now, by the authorizer and the grants: read (list shows what is shared '
    'with the caller), join (upsert works; false for a caller without an identity), manage (set_room works). An error '
    'of the authorizer is the statement''s error; NULL from it is a no. Errors: 22023 an invalid room or action.';

revoke all on function presence.may(text, text) from public;

create function _presence._fast_writes() returns bigint
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_fast_writes';
comment on function _presence._fast_writes() is
    'How many members verbs have written without the policies, since the server started.';

-- Immutable: the setting changes only when the server starts, and no plan outlives that.
create function _presence._node_name() returns text
    language c immutable parallel safe as 'MODULE_PATHNAME', 'presence_node_name';
comment on function _presence._node_name() is 'presence.node_name, NULL where that is empty.';

create function _presence._members() returns bigint
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_members';
comment on function _presence._members() is 'Rows of presence.member; NULL on a standby.';

create function _presence._beat_age() returns interval
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_beat_age';
comment on function _presence._beat_age() is
    'How long ago this server, or the primary of this standby, wrote a beat that was seen here; NULL if none was.';

create or replace view presence.health as
select h.library_version,
       (select e.extversion from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'presence_ext')
           as extension_version,
       h.worker_pid, h.worker_state,
       _presence._members() as members,
       h.slots_used, h.slots_max, h.events_buffered_bytes, h.event_buffer_bytes, h.events_published,
       h.events_dropped, h.notifications_sent, h.heartbeats, h.expired, h.last_sweep_at, h.sweep_lag, h.resyncs,
       h.sink_position, h.sink_lag, h.last_error, t.last_error_at, t.failing_since,
       _presence._fast_writes() as fast_writes, _presence._node_name() as node, _presence._beat_age() as beat_age,
       (select coalesce(pg_catalog.max(pg_catalog.pg_wal_lsn_diff(
                   case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                        else pg_catalog.pg_current_wal_lsn() end, s.restart_lsn)), 0)::bigint
        from pg_catalog.pg_replication_slots s
        where s.slot_type operator(pg_catalog.=) 'logical' and not s.active
          and s.database operator(pg_catalog.=) pg_catalog.current_database()) as kept_wal
from _presence._health() h cross join _presence._trouble() t;
comment on view presence.health is
    'One row: versions, the worker (none, starting, running, yielded, absent, standby), rows of members, lease '
    'slots used and their maximum, the event buffer in bytes, counters since the server started, the last error '
    'of the worker or the sink and its time, since when every attempt has failed (NULL: all is well), how many '
    'members were written by the fast path (presence.fast_path), the name of the server, the age of its last '
    'beat, and the WAL kept for slots that nobody reads. Members of pg_monitor may read it.';
revoke all on function _presence._fast_writes(), _presence._members(), _presence._beat_age(), _presence._node_name() from public;
grant execute on function _presence._fast_writes(), _presence._members(), _presence._beat_age(), _presence._node_name() to pg_monitor;

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
revoke all on function _presence._granted(regrole) from public;

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

create or replace function _presence.grant_access(role regrole, write boolean default true) returns void
    language sql set search_path = pg_catalog, pg_temp
begin atomic
    select presence.grant_access(grant_access.role, grant_access.write);
end;
create or replace function _presence.revoke_access(role regrole) returns void
    language sql set search_path = pg_catalog, pg_temp
begin atomic
    select presence.revoke_access(revoke_access.role);
end;

comment on function _presence.grant_access(regrole, boolean) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';
comment on function _presence.revoke_access(regrole) is
    'As 0.2.0 had it in schema presence, for calls that somebody has stored.';

create function presence.act_as(user_id text, teams text[] default null) returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_act_as';
create function presence.forget(user_id text) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_forget';
create function presence.unlisten(room text default null) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_unlisten';
create function presence.rotate_channels(room text default null) returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_rotate_channels';
revoke all on function
    presence.act_as(text, text[]), presence.forget(text), presence.grant_access(regrole, boolean), presence.revoke_access(regrole),
    presence.rotate_channels(text), presence.unlisten(text)
    from public;

create function _presence._same_json(jsonb, jsonb) returns boolean
    language c immutable strict parallel safe as 'MODULE_PATHNAME', 'presence_same_json';
comment on function _presence._same_json(jsonb, jsonb) is
    'Whether both have the same bytes. For jsonb = a number is equal to the same with a thousand zeros behind.';
revoke all on function _presence._same_json(jsonb, jsonb) from public;

-- Each logged table has a replica identity.
alter table _presence.secret add primary key (key);

create or replace function _presence._room_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_room_before';

drop function _presence._tell_room(text, jsonb, text[]);
create function _presence._tell_room(room text, metadata jsonb, audience text[], old_audience text[]) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_tell_room';
comment on function _presence._tell_room(text, jsonb, text[], text[]) is
    'Make a room event, once this transaction is committed, if metadata is within presence.max_state_size (54000). '
    'old_audience is NULL if there was none.';
revoke all on function _presence._tell_room(text, jsonb, text[], text[]) from public;

create or replace function _presence._room_after() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_relid <> 'presence.room'::regclass or tg_when <> 'AFTER' or tg_level <> 'ROW' or tg_op = 'DELETE' then
        raise exception using errcode = '39P01',
            message = 'this function is for the triggers of presence.room alone',
            detail = 'It reads and writes what those have.',
            hint = 'Give your own trigger a function of your own.';
    end if;
    if not _presence._same_json(new.metadata, case tg_op when 'INSERT' then '{}' else old.metadata end) then
        perform _presence._tell_room(new.room, new.metadata,
                                    coalesce(new.audience, _presence._default_audience(new.room)),
                                    case tg_op when 'UPDATE'
                                         then coalesce(old.audience, _presence._default_audience(new.room)) end);
    end if;
    return null;
end
$$;

create or replace function presence.set_room(
    room           text,
    metadata       jsonb    default null,
    patch          jsonb    default null,
    audience       text[]   default null,
    count_audience text[]   default null,
    ttl            interval default null,
    max_members    integer  default null,
    keep_history   boolean  default null
) returns presence.room
    language sql volatile parallel unsafe
begin atomic
    select _presence._require_manage(_presence._room(set_room.room));
    -- The row as a whole, because others may have added columns.
    insert into presence.room as r (room, metadata, audience, count_audience, ttl, max_members, keep_history,
                                    version, created_at, updated_at)
    values (set_room.room,
            case when set_room.patch is null then coalesce(set_room.metadata, '{}')
                 else _presence._merge_patch(coalesce(set_room.metadata, '{}'), set_room.patch) end,
            set_room.audience, set_room.count_audience, set_room.ttl, set_room.max_members,
            coalesce(set_room.keep_history, true), 0, now(), now())
    on conflict (room) do update set
        metadata = case when set_room.patch is null then coalesce(set_room.metadata, r.metadata)
                        else _presence._merge_patch(coalesce(set_room.metadata, r.metadata), set_room.patch) end,
        audience = coalesce(set_room.audience, r.audience),
        count_audience = coalesce(set_room.count_audience, r.count_audience),
        ttl = coalesce(set_room.ttl, r.ttl),
        max_members = coalesce(set_room.max_members, r.max_members),
        keep_history = coalesce(set_room.keep_history, r.keep_history)
    returning r;
end;

create or replace function presence.get_room(room text) returns setof presence.room
    language sql stable parallel restricted rows 1
begin atomic
    -- The row as a whole, because others may have added columns.
    select r from presence.room r where r.room operator(pg_catalog.=) _presence._room(get_room.room);
end;

create function _presence._shown_audience(audience text[], whole boolean) returns jsonb
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_shown_audience';
comment on function _presence._shown_audience(text[], boolean) is
    'What a reader of the log is shown instead of a line''s audience, as an object with that column: everybody who sees the '
    'member then, or nothing.';
revoke all on function _presence._shown_audience(text[], boolean) from public;

create or replace function presence.changes(after_seq bigint, room text default null, max_rows integer default 1000)
    returns setof presence.event
    language sql stable parallel restricted rows 100
begin atomic
    with found as materialized (
        select e.seq,
               jsonb_populate_record(
                   e, _presence._shown_audience(e.audience, e.user_id operator(pg_catalog.=) (select presence.user_id())
                                                            or (select presence.is_service()))) as line
        from presence.event e
        where e.seq operator(pg_catalog.>) _presence._seq(changes.after_seq)
          and (changes.room is null or e.room operator(pg_catalog.=) changes.room
               or e.event operator(pg_catalog.=) 'resync')
          -- Roles that bypass the policies see only the update of a changed audience, like service roles.
          and (e.audience[1] is distinct from '-' or not (select presence.is_service()))
        order by e.seq limit _presence._limit(changes.max_rows)
    )
    select jsonb_populate_record(
        null::presence.event, jsonb_build_object('seq', _presence._log_floor(), 'event', 'resync'))
    where changes.after_seq operator(pg_catalog.<) _presence._log_floor()
    union all
    select f.line from found f
    union all
    select jsonb_populate_record(
        null::presence.event, jsonb_build_object('event', 'position', 'seq',
            case when (select count(*) from found) operator(pg_catalog.=) _presence._limit(changes.max_rows)
                 then (select max(f.seq) from found f)
                 else greatest(_presence._seq(changes.after_seq), _presence._log_position()) end))
    where changes.room is null or _presence._room(changes.room) is not null;
end;

create or replace function presence.history(
    room       text,
    since      timestamptz default null,
    until      timestamptz default null,
    max_rows   integer     default 100,
    direction  text        default 'backwards',
    member_id  text        default null,
    before_seq bigint      default null
) returns setof presence.event
    language sql stable parallel restricted rows 100
begin atomic
    with asked as not materialized (
        select e.seq, jsonb_populate_record(
                   e, _presence._shown_audience(e.audience, e.user_id operator(pg_catalog.=) (select presence.user_id())
                                                            or (select presence.is_service()))) as event
        from presence.event e
        where _presence._room(history.room) is not null and _presence._keeps_history(history.room)
          and e.room operator(pg_catalog.=) _presence._room(history.room)
          and (e.audience[1] is distinct from '-' or not (select presence.is_service()))
          and (history.since is null or e.at operator(pg_catalog.>=) history.since)
          and (history.until is null or e.at operator(pg_catalog.<) history.until)
          and (history.member_id is null or e.member_id operator(pg_catalog.=) history.member_id)
          and (history.before_seq is null or e.seq operator(pg_catalog.<) history.before_seq))
    -- Two scans of the index on seq; the direction selects one of them.
    (select a.event from asked a
     where not _presence._direction(history.direction)
     order by a.seq desc limit _presence._limit(history.max_rows))
    union all
    (select a.event from asked a
     where _presence._direction(history.direction)
     order by a.seq limit _presence._limit(history.max_rows));
end;

-- Comments that have changed.
comment on function presence.grant_access(regrole, boolean) is
    'Let a role use presence: USAGE on the schema; SELECT on member, event, room, online, last_seen, shared and '
    'shared_online, restricted by policies; INSERT, UPDATE and DELETE on member and room unless write is false; '
    'EXECUTE on the functions, which check the caller''s rights themselves. Not included: act_as, and health, which is '
    'for members of pg_monitor. For the owner of the extension. Repeat it after an upgrade that adds functions. '
    'Returns whether anything new was granted. Errors: 22023 or 42704 no such role; 42501 not the owner.';
comment on function presence.revoke_access(regrole) is
    'Revoke what presence.grant_access granted. Returns whether anything was revoked. Required before DROP ROLE. For '
    'the owner of the extension. Errors: 22023 or 42704 no such role; 42501 not the owner.';
comment on function presence.unlisten(text) is
    'Undo presence.listen with the same argument (NULL: all rooms). Returns how many channels were closed. Errors: '
    '22023 an invalid room; 0A000 outside of a client''s own session.';
comment on function presence.rotate_channels(text) is
    'Give the channels of the room (NULL: all channels) new names once this transaction is committed; listeners of the '
    'old ones hear relisten. Returns true. For service roles, and for a room also for whoever may manage it. Errors: '
    '22023 an invalid room; 42501 not allowed; 25006 a standby.';
comment on function presence.history(text, timestamptz, timestamptz, integer, text, text, bigint) is
    'Events of a room that the caller may see, in the order of seq. since is inclusive, until exclusive; direction is '
    'backwards or forwards; max_rows is 1 to 1000; member_id selects one member; before_seq is for paging backwards. '
    'Reaches back for presence.history_retention; nothing for rooms with keep_history = false. Errors: 22023 an '
    'invalid argument; 25006 a standby.';

comment on function presence.forget(text) is
    'Erase a user from members, log, last_seen and shared. What the leave of members that were still here puts into '
    'the log is erased once it is published (presence.wait_for_flush). Returns how many rows there were. For service '
    'roles. Errors: 22023 an invalid user_id; 42501 not a service role; 25006 a standby.';
comment on function presence.user_id() is
    'Who is asking: for a login of presence.trusted_login_roles the sub of request.jwt.claims; for a superuser the '
    'same if it is set; NULL for presence.anonymous_roles; else current_user. Claims count only in a client''s own '
    'session: in background processes and in what ANALYZE, REINDEX, REFRESH and the like run, it goes by the role.';
comment on function presence.act_as(text, text[]) is
    'Act as this user until the transaction ends: sets request.jwt.claims. Returns true. For logins in '
    'presence.trusted_login_roles and superusers (else 42501), in their own session (else 0A000). '
    'presence.grant_access does not grant it: GRANT EXECUTE to the role that the application''s server logs in '
    'with.';
comment on function _presence._may(text, text) is
    'Whether presence.authorizer lets the caller read, join or manage the room; without one everybody may read and '
    'join. Service roles may. What the authorizer raises fails the statement; NULL is a no.';
comment on function presence.set_room(text, jsonb, jsonb, text[], text[], interval, integer, boolean) is
    'Create or change the settings of a room. NULL keeps the current value (to set a column to NULL, UPDATE the '
    'table). patch is a JSON merge patch (RFC 7396) on metadata. A change of metadata is a room event. For service '
    'roles and whoever may manage the room. Errors: 22023 invalid values; 42501 not allowed to manage the room; 54000 '
    'metadata too large; 25006 a read-only transaction or a standby.';

comment on function presence.get_room(text) is
    'The settings of a room, if it has any and the caller may read them. Errors: 22023 an invalid room.';

comment on function presence.delete_room(text) is
    'Delete the settings of a room. Its members leave with reason removed; returns how many. For service roles and '
    'whoever may manage the room. Errors: 22023 an invalid room; 42501 not allowed to manage it; 25006 a read-only '
    'transaction or a standby.';

comment on function presence.listen(text) is
    'LISTEN in this session, from its commit on, to the channels that the caller may hear for the room (NULL: all '
    'rooms). Returns their names. Call it again to refresh them. Errors: 22023 an invalid room; 42501 not allowed to '
    'read it; 0A000 where sessions are shared (presence.session_features, presence.trusted_login_roles) or outside of '
    'a client''s own session; 25006 a standby.';
comment on function presence.channels(text) is
    'The channel names that presence.listen would listen to, for drivers that send LISTEN themselves. The first one is '
    'always presence. The others change when they are rotated and with a crash: ask after each connect, on relisten '
    'and on resync. Errors: 22023 an invalid room; 42501 not allowed to read it; 0A000 outside of a client''s own '
    'session; 25006 a standby.';

-- Includes the room, because the worker counts a user's members in it.
drop index if exists presence.member_user_id;
create index member_user_id on presence.member (user_id, room);
create index member_audience on presence.member using gin (audience) with (gin_pending_list_limit = 256);

-- NULL instead of infinity where no lease ends: most drivers cannot read infinity.
alter table presence.member alter column expires_at drop not null;
comment on column presence.member.expires_at is
    'end of the lease as of the last write, NULL where none ends; for the current value see presence.online';
comment on function _presence._expires_at(uuid, bigint, bigint, bigint, bigint) is
    'When the lease of a row ends; NULL if it never does, or the member is gone.';

-- An announced leave.
alter table presence.member
    add column leaves_at timestamptz, add column last_word jsonb, add column leave_reason text;
comment on column presence.member.deadline is
    'the end of the lease as of the last write, in microseconds of the boot clock; -1 is never; of a member that is '
    'leaving, in microseconds of the wall clock since 2000, negative';
comment on column presence.member.leaves_at is
    'when the member leaves, unless it upserts before (presence.delete with after); heartbeats do not postpone it';
comment on column presence.member.last_word is 'what that leave shows as state; NULL is the state';
comment on column presence.member.leave_reason is 'why it leaves then; NULL is left';

-- Parts of status and state that revert by themselves.
alter table presence.member add column reverts jsonb;
comment on column presence.member.reverts is
    'what of status and state will be undone, and when; NULL is nothing';

-- A row with what has reverted by now. Both functions take the row's (reverts, key_hash, version).

create function _presence._current_status(status text, jsonb, uuid, bigint) returns text
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_current_status';
comment on function _presence._current_status(text, jsonb, uuid, bigint) is
    'The status of a row as it is now, of which something will be undone.';

create function _presence._current_state(state jsonb, jsonb, uuid, bigint) returns jsonb
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_current_state';
comment on function _presence._current_state(jsonb, jsonb, uuid, bigint) is
    'The state of a row as it is now, of which something will be undone.';
revoke all on function _presence._current_status(text, jsonb, uuid, bigint),
    _presence._current_state(jsonb, jsonb, uuid, bigint) from public;

comment on function presence.wait_for_flush(interval) is
    'Wait until everything that was committed before the call is published. Returns false if the timeout ran out. For '
    'tests and scripts. Errors: 22023 a timeout that is negative or longer than a day; 25006 a standby.';

comment on function presence.sweep() is
    'Remove expired members now, in this transaction, as the worker does by itself, and write what has reverted. '
    'Returns how many members were removed. For service roles. Errors: 42501 not a service role; 25006 a standby.';

-- The server where a member is, or where an event happened: NULL where presence.node_name is empty. Functions that return
-- these rows have it, too.
alter table presence.event add column node text;
comment on table presence.event is
    'The log: every event with its seq, in order, for presence.history_retention. An audience that starts with "-" '
    'marks a line that was made for others than the owner (a leave or enter by a changed audience); a "+" in front of '
    'a token of an update, that who has it gained sight.';
comment on column presence.event.node is 'the server where it happened; NULL where presence.node_name is empty';

create or replace view presence.online with (security_invoker = true) as
select m.room,
       m.member_id,
       m.connection_id,
       m.user_id,
       case when m.reverts is null then m.status
            else _presence._current_status(m.status, m.reverts, m.key_hash, m.version) end as status,
       case when m.reverts is null then m.state
            else _presence._current_state(m.state, m.reverts, m.key_hash, m.version) end as state,
       m.metadata,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.audience end as audience,
       m.version,
       m.joined_at,
       m.updated_at,
       _presence._last_seen_at(m.key_hash, m.version, m.generation, m.deadline, m.session, m.ttl, m.last_seen_at)
           as last_seen_at,
       _presence._expires_at(m.key_hash, m.version, m.generation, m.deadline, m.session) as expires_at,
       m.ttl,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.session_pid end as session_pid,
       _presence._node_name() as node
from presence.member m
where _presence._is_alive(m.key_hash, m.version, m.generation, m.deadline, m.session);
comment on view presence.online is
    'Every member that is here and that the caller may see. A member is here until its lease ends, to the '
    'microsecond. audience and session_pid are NULL except for the owner and service roles; node where the server has no '
    'name (presence.node_name).';

-- The copy: members in a logged table, which survives a crash and which standbys and other servers have as well. It is
-- filled only where presence.node_name is set, and only by the worker: the process that publishes also copies. The shape
-- is a protocol between servers of different versions, so the columns stay as they are; what a later version adds goes
-- into more. There is no constraint but the key: a row that a peer sends must not stop the stream.

create table presence.shared (
    node           text not null,
    room           text not null,
    member_id      text not null,
    connection_id  text not null,
    user_id        text,
    status         text,
    state          jsonb,
    metadata       jsonb,
    audience       text[],
    version        bigint,
    generation     bigint,
    joined_at      timestamptz,
    updated_at     timestamptz,
    last_seen_at   timestamptz,
    ttl            interval,
    session        boolean,
    reason         text,
    more           jsonb,
    -- By room first, because readers search by room.
    primary key (room, member_id, connection_id, node)
) using heap with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
    vacuum_truncate = off, toast.vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 1000
);
create index shared_user_id on presence.shared (user_id, room);

create table presence.node (
    node     text primary key,
    epoch    bigint,
    beat     bigint,
    beat_at  timestamptz,
    state    text,
    members  bigint,
    floor    bigint,
    library  text,
    more     jsonb
) using heap with (
    fillfactor = 10,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

comment on table presence.shared is
    'The logged copy of the members, where presence.node_name is set: it outlives a crash, and standbys have it. Written by '
    'the worker, a moment after the event; not dumped. To know who is here read presence.online.';
comment on column presence.shared.node is 'the server where the member is: its presence.node_name';
comment on column presence.shared.room is 'the room';
comment on column presence.shared.member_id is 'who or what is present';
comment on column presence.shared.connection_id is 'which tab, device or connection; empty where nobody tells them apart';
comment on column presence.shared.user_id is 'who owns the member';
comment on column presence.shared.status is 'a short text; NULL is none';
comment on column presence.shared.state is 'the live state; of one that leaves, the last word';
comment on column presence.shared.metadata is 'slow-changing facts';
comment on column presence.shared.audience is 'who may see the member, besides its owner: a list of tokens';
comment on column presence.shared.version is
    'the version of the row that was copied; of a member elsewhere, one that this server has given';
comment on column presence.shared.generation is 'the version with which this stay began';
comment on column presence.shared.joined_at is 'when this stay began';
comment on column presence.shared.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence.shared.last_seen_at is 'when the member was last seen, as of its last change: renewals are not copied';
comment on column presence.shared.ttl is 'how long the lease lasts after each renewal; NULL for a session member without ttl';
comment on column presence.shared.session is 'whether the member is bound to a database session';
comment on column presence.shared.reason is
    'why it leaves: said by the last UPDATE of a row, in the transaction of its DELETE; else NULL';
comment on column presence.shared.more is
    'what else is needed to restore the member: leaves_at, expires_at, leave_reason, last_word, reverts; and whatever later '
    'versions add';

comment on table presence.node is
    'Servers that have a name (presence.node_name), and their beats: whoever has seen one has everything that was copied before.';
comment on column presence.node.node is 'the name';
comment on column presence.node.epoch is 'grows with each start of the server';
comment on column presence.node.beat is 'grows every presence.node_beat (milliseconds)';
comment on column presence.node.beat_at is 'when that was, by the clock of that server';
comment on column presence.node.state is
    'restoring (members are being restored after a crash), up, or down: it has stopped';
comment on column presence.node.members is 'how many members the copy has of it; NULL while that is looked at';
comment on column presence.node.floor is 'no version or seq at or above this one has been issued';
comment on column presence.node.library is 'the version of its library';
comment on column presence.node.more is 'whatever later versions add';

-- Readable like member. While member has policies other than the extension's, only the owner of a row and service roles
-- can read it. No policy lets anybody write, whatever is granted.
alter table presence.shared enable row level security;
alter table presence.node enable row level security;
create policy shared_read on presence.shared for select using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or ((select _presence._has_builtin_policies())
        and audience operator(pg_catalog.&&) (select presence.tokens()) and _presence._may(room, 'read'))
);
create policy node_read on presence.node for select using (true);

-- Unlogged like presence.member: when both are empty, after a crash or a promotion, the members have to be restored.
create unlogged table _presence._whole (node text primary key);
comment on table _presence._whole is
    'The name under which presence.member has whom presence.shared has; no row: it has been emptied by a crash.';
alter table _presence._whole enable row level security;

-- After a crash no listener has been told anything, so it may be empty.
create unlogged table _presence._unreachable (
    node           text,
    room           text,
    member_id      text,
    connection_id  text,
    primary key (node, room, member_id, connection_id)
);
comment on table _presence._unreachable is
    'Members of other servers that listeners were told have left, because their server is not heard.';
alter table _presence._unreachable enable row level security;

create function _presence._is_heard(node text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_is_heard';
comment on function _presence._is_heard(text) is
    'Whether this server has seen a beat of that one within presence.node_timeout.';

-- For what other servers send. The triggers fire only where that is applied.
create function _presence._shared_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_shared_before';
comment on function _presence._shared_before() is
    'Leaves out what a peer may not say, and gives the rest versions of this server.';
create function _presence._shared_after() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_shared_after';
comment on function _presence._shared_after() is 'Makes events of what a peer has sent.';
create function _presence._node_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_node_before';
comment on function _presence._node_before() is 'Leaves out beats of this server''s own name.';
create function _presence._node_after() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_node_after';
comment on function _presence._node_after() is 'Notes that a peer is alive, by the clock of this server.';

create trigger presence_before before insert or update or delete on presence.shared
    for each row execute function _presence._shared_before();
create trigger presence_after after insert or update or delete on presence.shared
    for each row execute function _presence._shared_after();
create trigger presence_before before insert or update on presence.node
    for each row execute function _presence._node_before();
create trigger presence_after after insert or update on presence.node
    for each row execute function _presence._node_after();
alter table presence.shared enable replica trigger presence_before;
alter table presence.shared enable replica trigger presence_after;
alter table presence.node enable replica trigger presence_before;
alter table presence.node enable replica trigger presence_after;

create function _presence._is_elsewhere(node text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_is_elsewhere';
comment on function _presence._is_elsewhere(text) is
    'Whether that is another server, of which this one has seen a beat within presence.node_timeout.';
create function _presence._version_here(node text, version bigint) returns bigint
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_version_here';
comment on function _presence._version_here(text, bigint) is
    'The version with which a member of that server is shown here: newer than what was told of it before its server came back.';
-- The worker redefines online as this when the first beat of another server arrives, to add its members. Until then no
-- query plans for them. The two halves select plain columns, so that each is searched by its indexes.
create view _presence._everywhere with (security_invoker = true) as
select m.room,
       m.member_id,
       m.connection_id,
       m.user_id,
       case when m.reverts is null then m.status
            else _presence._current_status(m.status, m.reverts, m.key_hash, m.version) end as status,
       case when m.reverts is null then m.state
            else _presence._current_state(m.state, m.reverts, m.key_hash, m.version) end as state,
       m.metadata,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.audience end as audience,
       case when m.node is null then m.version else _presence._version_here(m.node, m.version) end as version,
       m.joined_at,
       m.updated_at,
       case when m.node is null
            then _presence._last_seen_at(m.key_hash, m.version, m.generation, m.deadline, m.session, m.ttl, m.last_seen_at)
            else m.last_seen_at end as last_seen_at,
       case when m.node is null
            then _presence._expires_at(m.key_hash, m.version, m.generation, m.deadline, m.session) end as expires_at,
       m.ttl,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.session_pid end as session_pid,
       coalesce(m.node, _presence._node_name()) as node
from (select h.room, h.member_id, h.connection_id, h.user_id, h.status, h.state, h.metadata, h.audience, h.version,
             h.joined_at, h.updated_at, h.last_seen_at, h.ttl, h.generation, h.deadline, h.session, h.session_pid, h.key_hash,
             h.reverts, null::text as node
      from presence.member h
      union all
      select s.room, s.member_id, s.connection_id, s.user_id, s.status, s.state, s.metadata, s.audience, s.version,
             s.joined_at, s.updated_at, s.last_seen_at, s.ttl, null::bigint, null::bigint, null::bigint, null::integer,
             null::uuid, null::jsonb, s.node
      from presence.shared s) m
where case when m.node is null then _presence._is_alive(m.key_hash, m.version, m.generation, m.deadline, m.session)
           else _presence._is_elsewhere(m.node) end;
comment on view _presence._everywhere is 'What presence.online is where there are other servers.';

-- The same columns as presence.online.
create view presence.shared_online with (security_invoker = true) as
select s.room, s.member_id, s.connection_id, s.user_id, s.status, s.state, s.metadata,
       case when s.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then s.audience end as audience,
       _presence._version_here(s.node, s.version) as version, s.joined_at, s.updated_at, s.last_seen_at,
       null::timestamptz as expires_at, s.ttl, null::integer as session_pid, s.node
from presence.shared s
where _presence._is_heard(s.node);
comment on view presence.shared_online is
    'Who is here according to the logged copy; works on a standby, too. Like presence.online, but without what is not '
    'copied yet, with last_seen_at as of the last change, and expires_at NULL. Nobody is shown of a server that has '
    'not been heard for presence.node_timeout.';
comment on column presence.shared_online.room is 'the room';
comment on column presence.shared_online.member_id is 'who or what is present';
comment on column presence.shared_online.connection_id is
    'which tab, device or connection; empty where nobody tells them apart';
comment on column presence.shared_online.user_id is 'who owns the member';
comment on column presence.shared_online.status is 'a short text; NULL is none';
comment on column presence.shared_online.state is 'the live state';
comment on column presence.shared_online.metadata is 'slow-changing facts';
comment on column presence.shared_online.audience is 'who may see the member; NULL except for the owner and service roles';
comment on column presence.shared_online.version is 'grows with every visible change: the newest wins';
comment on column presence.shared_online.joined_at is 'when this stay began';
comment on column presence.shared_online.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence.shared_online.last_seen_at is 'when the member was last seen, as of its last change';
comment on column presence.shared_online.expires_at is 'NULL: leases are not copied';
comment on column presence.shared_online.ttl is 'how long the lease lasts after each renewal';
comment on column presence.shared_online.session_pid is 'NULL';
comment on column presence.shared_online.node is 'the server where the member is';

create function _presence._page(max_rows integer) returns bigint
    language c immutable parallel safe as 'MODULE_PATHNAME', 'presence_page';
comment on function _presence._page(integer) is 'max_rows of presence.list, if it is NULL or 1 to 10000 (22023).';
create function _presence._start(after text[], parts integer) returns text[]
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_start';
comment on function _presence._start(text[], integer) is
    'after, if it has that many parts (22023); where it is NULL, as many that are before all names.';

revoke all on function _presence._page(integer), _presence._start(text[], integer) from public;

create or replace function presence.list(room text default null, max_rows integer default null, after text[] default null)
    returns setof presence.online
    language c stable parallel restricted rows 100 as 'MODULE_PATHNAME', 'presence_list';
comment on function presence.list(text, integer, text[]) is
    'Who is here, in the order of the key: in the room, or in all rooms (NULL). max_rows is 1 to 10000; NULL is the '
    'whole room, or of all rooms 1000. after is the key of the last row of the page before: {member_id, '
    'connection_id}, or {room, member_id, connection_id} when room is NULL. Errors: 22023 an invalid room, max_rows or '
    'after.';

-- The same as a SELECT, for when list cannot take its fast path. Two plain index scans; the arguments select one of them.
create function _presence._list(room text, max_rows integer, after text[]) returns setof presence.online
    language sql stable parallel restricted rows 100
begin atomic
    (select o.* from presence.online o
     where _list.room is not null
       and _presence._room(_list.room) is not null and o.room operator(pg_catalog.=) _list.room
       and (o.member_id, o.connection_id) operator(pg_catalog.>)
           ((_presence._start(_list.after, 2))[1], (_presence._start(_list.after, 2))[2])
     order by o.member_id, o.connection_id
     fetch first coalesce(_presence._page(_list.max_rows), 4611686018427387904) rows with ties)
    union all
    (select o.* from presence.online o
     where _list.room is null
       and (o.room, o.member_id, o.connection_id) operator(pg_catalog.>)
           ((_presence._start(_list.after, 3))[1], (_presence._start(_list.after, 3))[2],
            (_presence._start(_list.after, 3))[3])
     order by o.room, o.member_id, o.connection_id
     fetch first case when _list.max_rows is null then 1000 else _presence._page(_list.max_rows) end rows with ties);
end;
comment on function _presence._list(text, integer, text[]) is 'presence.list, planned with each call, under the policies.';
revoke all on function _presence._list(text, integer, text[]) from public;
drop function _presence._after(text[], integer);

create function _presence._rank(status text) returns integer
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_rank';
comment on function _presence._rank(text) is 'The place of a status in presence.status_rank, from 1; NULL if it is not listed.';
create function _presence._ranked(rank integer, status text) returns text
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_ranked';
comment on function _presence._ranked(integer, text) is
    'The status of that rank in presence.status_rank; where rank is NULL, the one given.';

revoke all on function _presence._rank(text), _presence._ranked(integer, text) from public;

create or replace function presence.users(room text)
    returns table (user_id text, members bigint, status text, state jsonb, metadata jsonb, joined_at timestamptz,
                   last_seen_at timestamptz)
    language sql stable parallel restricted rows 50
begin atomic
    select u.user_id, u.members, _presence._ranked(u.rank, u.status), u.state, u.metadata, u.first_joined_at, u.last_seen_at
    from (select o.user_id, o.status, o.state, o.metadata, o.last_seen_at,
                 count(*) over all_of_user as members,
                 min(o.joined_at) over all_of_user as first_joined_at,
                 min(_presence._rank(o.status)) over all_of_user as rank,
                 row_number() over (partition by o.user_id order by o.last_seen_at desc, o.version desc) as place
          from presence.online o
          where _presence._room(users.room) is not null and o.room operator(pg_catalog.=) _presence._room(users.room)
          window all_of_user as (partition by o.user_id)) u
    where u.place operator(pg_catalog.=) 1
    order by u.user_id;
end;
comment on function presence.users(text) is
    'The room with one row for each user: the number of members, status, state and metadata of the most recently '
    'active one, the first joined_at and the last last_seen_at. If presence.status_rank lists statuses of the user''s '
    'members, the highest of these is shown. Errors: 22023 an invalid room.';

comment on function presence.get(text, text, text) is
    'One member, by default the caller: all its connections, or the one with this connection_id. Errors: 22023 an '
    'invalid name.';

comment on function presence.occupancy(text) is
    'The number of members and users in the room (NULL: anywhere) that the caller may see. If the room''s '
    'count_audience includes the caller, everybody counts. Errors: 22023 an invalid room.';

comment on function presence.rooms(text, integer, text) is
    'The rooms in which the caller can see somebody, with the numbers of members and users, in the order of their '
    'names. prefix is taken literally; after is the last room of the page before; max_rows is 1 to 1000. Errors: 22023 '
    'an invalid max_rows.';

comment on function presence.state(text) is
    'The room as Supabase''s presenceState() returns it: {member_id: [{presence_ref, ...state}]}, one element for each '
    'connection; presence_ref is the version as text. A state that is not an object appears as {presence_ref, state}. '
    'Errors: 22023 an invalid room.';

comment on function presence.seq() is
    'The seq of the last published event. Errors: 25006 a standby.';

comment on function presence.changes(bigint, text, integer) is
    'The events after a seq that the caller may see, oldest first, at most max_rows (1 to 1000) of them. The last row '
    'is always event position, with the seq up to which it looked: go on from there. When the log does not reach back '
    'to after_seq the first row is resync: forget everything and list. Errors: 22023 an invalid room, max_rows or '
    'after_seq; 25006 a standby.';

comment on function presence.delete_many(jsonb) is
    'presence.delete for an array of objects with the names of its arguments. All or nothing. Returns how many left. '
    'Errors: as presence.delete; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 '
    'names the element.';

comment on function presence.upsert_many(jsonb) is
    'presence.upsert for an array of objects with the names of its arguments (or patch, a JSON merge patch, instead of '
    'state). All or nothing; if a key is repeated, the last element wins. Returns the number of members. Errors: as '
    'presence.upsert; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the '
    'element.';

comment on function presence.delete_all(text, text) is
    'Leave every room, as on sign-out; with connection_id, only that connection. A user_id other than the caller''s '
    'requires a service role. Returns how many members left. Errors: 22023 invalid names; 42501 no identity, or '
    'another user; 25006 a read-only transaction or a standby.';

comment on function presence.heartbeat_many(text[], text[], text[]) is
    'Renew many leases. Returns those that do not exist. NULL member_ids stands for the caller, NULL connection_ids '
    'for the empty connection_id. Errors: 22023 invalid names, or arrays of different lengths; otherwise as '
    'presence.heartbeat.';

comment on function presence.heartbeat(text, text, text) is
    'Renew the lease: touches no table, writes no WAL, works in a read-only transaction, and is not undone by a '
    'rollback. Returns false if you have no such member: call presence.upsert then. Errors: 22023 invalid names; 42501 '
    'no identity; 25006 a standby, or a read-only transaction and a lease without a slot.';

create or replace function presence.get(room text, member_id text default null, connection_id text default null)
    returns setof presence.online
    language sql stable parallel restricted rows 10
begin atomic
    select o.* from presence.online o
    where _presence._room(get.room) is not null and o.room operator(pg_catalog.=) _presence._room(get.room)
      -- Not coalesce: under row-level security PostgreSQL would not use the index for it.
      and o.member_id operator(pg_catalog.=)
          case when get.member_id is null then presence.user_id() else get.member_id end
      and (get.connection_id is null or o.connection_id operator(pg_catalog.=) get.connection_id)
    order by o.connection_id;
end;

create function presence.upsert(
    room          text,
    state         jsonb    default null,
    member_id     text     default null,
    connection_id text     default '',
    status        text     default null,
    metadata      jsonb    default null,
    ttl           interval default null,
    audience      text[]   default null,
    session       boolean  default null,
    user_id       text     default null,
    revert_after  interval default null
) returns presence.online
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_upsert';
comment on function presence.upsert(text, jsonb, text, text, text, jsonb, interval, text[], boolean, text, interval) is
    'Enter a room, or change what is there. NULL keeps the current value (on enter: {}, no status, {}, the default ttl '
    'and audience); an empty status clears it; audience {} is visible to the owner only; ttl 0 is the default, '
    'otherwise 1 second to 30 days. If nothing changes, it only renews the lease: no event, no write. session => true: '
    'leaves when this database session ends. revert_after: after this time, at most 100 years, what this call changed '
    'in status and state is undone, unless a later call sets it again. Errors: 22023 invalid names, ttl, audience or '
    'revert_after; 54000 state too large, or too many members; 42501 no identity, a member_id that is not yours, '
    'another user''s member, not authorized to join; 0A000 no session members here; 25006 a read-only transaction or a '
    'standby. For a JSON merge patch see presence.update.';

create function presence.update(
    room          text,
    patch         jsonb    default null,
    member_id     text     default null,
    connection_id text     default '',
    status        text     default null,
    metadata      jsonb    default null,
    audience      text[]   default null,
    ttl           interval default null,
    revert_after  interval default null
) returns setof presence.online
    language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'presence_update';
comment on function presence.update(text, jsonb, text, text, text, jsonb, text[], interval, interval) is
    'Change a member that is here by a JSON merge patch (RFC 7396) on state, and renew its lease. Returns no row if it '
    'is not here: a late update does not bring back a member that has left. revert_after and errors as in '
    'presence.upsert; 22023 also for a patch that is not an object.';

create function presence.delete(
    room          text,
    member_id     text     default null,
    connection_id text     default '',
    state         jsonb    default null,
    reason        text     default null,
    after         interval default null
) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_delete';
comment on function presence.delete(text, text, text, jsonb, text, interval) is
    'Leave. state is a last word, shown by the leave event. A NULL connection_id means all connections of the member. '
    'With after they leave when that time is over, unless an upsert comes first (heartbeat and update do not cancel '
    'it) or their lease ends first; the last call counts. Returns how many leave; 0 if nobody is there. Service roles '
    'may give a reason: left, disconnected or removed. Errors: 22023 invalid names, reason or after; 42501 no '
    'identity, or another user''s member; 25006 a read-only transaction or a standby.';

create function presence.update_many(members jsonb) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_update_many';
comment on function presence.update_many(jsonb) is
    'presence.update for an array of objects with the names of its arguments. Only members that are here are changed. '
    'All or nothing; if a key is repeated, the last element wins. Returns how many are here. Errors: as '
    'presence.update; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the '
    'element.';

-- Columns that the triggers fill have a default, so that tools see that they may be left out.
alter table presence.member
    alter column member_id set default nullif('', ''), alter column user_id set default nullif('', ''),
    alter column audience set default nullif('{}'::text[], '{}'), alter column version set default '0',
    alter column generation set default '0', alter column joined_at set default '-infinity',
    alter column updated_at set default '-infinity', alter column last_seen_at set default '-infinity',
    alter column deadline set default '0', alter column key_hash set default '00000000-0000-0000-0000-000000000000';
alter table presence.room
    alter column version set default 0, alter column created_at set default now(), alter column updated_at set default now();

-- The meaning of each column that users look at. Columns of presence.member that are not here are in tables.sql.

comment on column presence.online.room is 'the room';
comment on column presence.online.member_id is 'who or what is present: a label, by default the user id; trust user_id';
comment on column presence.online.connection_id is 'which tab, device or connection; empty where nobody tells them apart';
comment on column presence.online.user_id is 'who owns the member: the identity that wrote it';
comment on column presence.online.status is 'a short text such as online, away, typing; NULL is none';
comment on column presence.online.state is 'the live state, any JSON value: cursor, selection, tool';
comment on column presence.online.metadata is 'slow-changing facts: name, avatar';
comment on column presence.online.audience is
    'who may see the member, besides its owner: a list of tokens; NULL except for the owner and service roles';
comment on column presence.online.version is 'grows with every visible change and never goes back: the newest wins';
comment on column presence.online.joined_at is 'when this stay began';
comment on column presence.online.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence.online.last_seen_at is 'when the lease was renewed last';
comment on column presence.online.expires_at is
    'when the lease ends, or when the member leaves as announced; NULL for a session member without ttl, which has no '
    'lease';
comment on column presence.online.ttl is
    'how long the lease lasts after each renewal; NULL for a session member without ttl';
comment on column presence.online.session_pid is
    'the process of the database session that the member is bound to, NULL if it is bound to none; NULL except for the owner '
    'and service roles';
comment on column presence.online.node is 'the server where the member is; NULL where presence.node_name is empty';

comment on column presence.last_seen.user_id is 'the user';
comment on column presence.last_seen.online is 'whether one of the user''s members is here and visible to the caller';
comment on column presence.last_seen.last_seen_at is 'when the user was last seen; never NULL';

comment on column presence.event.seq is 'position in the database''s log of events; never goes back, also over a crash';
comment on column presence.event.version is
    'version of the member, or of the room, after the event: the newest wins; NULL for resync and position';
comment on column presence.event.event is
    'enter, update or leave of a member, or room: metadata of a room; resync and position of presence.changes';
comment on column presence.event.room is 'the room; NULL for resync and position';
comment on column presence.event.member_id is 'who or what was present; NULL where the event is no member''s';
comment on column presence.event.connection_id is
    'which tab, device or connection, often empty; NULL where the event is no member''s';
comment on column presence.event.user_id is 'who owned the member; NULL where the event is no member''s';
comment on column presence.event.status is 'the status after the event; NULL is none';
comment on column presence.event.state is
    'the state after the event, of a leave the last one or the last word; NULL where the event is no member''s, or too much '
    'was written at once';
comment on column presence.event.metadata is
    'the metadata after the event, of the member or the room; NULL where too much was written at once';
comment on column presence.event.connections is
    'how many members with the same room, member_id and audience there are after the event: 1 on enter is "came", 0 on leave '
    'is "went"; NULL where the event is no member''s';
comment on column presence.event.reason is
    'of a leave: left, expired, disconnected, removed, unreachable (its server is not heard) or hidden (from those who may not '
    'see it any more); else NULL';
comment on column presence.event.at is 'when it happened; for an expiry, when the lease ended; NULL for position';
comment on column presence.event.joined_at is 'when the stay began; NULL where the event is no member''s';
comment on column presence.event.audience is
    'whom the event is for: a list of tokens, which functions show to the owner and service roles only; if it begins with "-", '
    'for those who lost or gained sight and not for the owner';

comment on column presence.room.room is 'the room';
comment on column presence.room.metadata is 'state that the room shares; a change is a room event';
comment on column presence.room.audience is
    'who may read this row, and whom members who enter are shown to: a list of tokens; NULL is presence.default_audience';
comment on column presence.room.count_audience is
    'who may have the full numbers of presence.occupancy and hears when they change: a list of tokens; NULL is nobody';
comment on column presence.room.ttl is 'how long leases of members who enter last; NULL is presence.default_ttl';
comment on column presence.room.max_members is 'how many members may be here at once; NULL is no limit';
comment on column presence.room.keep_history is 'whether presence.history shows its events';
comment on column presence.room.version is 'grows with every change and never goes back';
comment on column presence.room.created_at is 'when the row was made';
comment on column presence.room.updated_at is 'when the row was changed last';

comment on column presence.member.room is 'the room; part of the key, which cannot be updated';
comment on column presence.member.member_id is 'who or what is present; left out of an INSERT, the owner';
comment on column presence.member.connection_id is 'which tab, device or connection; empty where nobody tells them apart';
comment on column presence.member.status is 'a short text; NULL is none';
comment on column presence.member.state is 'the live state, any JSON value';
comment on column presence.member.metadata is 'slow-changing facts';
comment on column presence.member.joined_at is 'when this stay began';
comment on column presence.member.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence.member.last_seen_at is
    'when the lease was renewed last, as of the last write; for the current value see presence.online';
comment on column presence.member.ttl is
    'how long the lease lasts after each renewal; NULL for a session member without ttl';
comment on column presence.member.session_pid is 'the process of that session; NULL if it is bound to none';

comment on column presence.health.library_version is 'version of the library that the server has loaded';
comment on column presence.health.extension_version is
    'version of the SQL in this database; where it is older than the library, ALTER EXTENSION presence_ext UPDATE';
comment on column presence.health.worker_pid is 'the worker of this database; NULL while there is none';
comment on column presence.health.worker_state is
    'none, starting, running, yielded (stepped aside for DROP DATABASE and the like), absent (no extension), standby';
comment on column presence.health.members is
    'rows of presence.member, with the expired ones that are not swept yet; NULL on a standby';
comment on column presence.health.slots_used is 'lease slots in use, over all databases of the server';
comment on column presence.health.slots_max is 'number of lease slots: presence.max_members';
comment on column presence.health.events_buffered_bytes is 'bytes of events that are committed and not published yet';
comment on column presence.health.event_buffer_bytes is 'size of the event buffer in bytes: presence.event_buffer';
comment on column presence.health.events_published is 'events published since the server started';
comment on column presence.health.events_dropped is
    'events lost since the server started, because the buffer was full or they could not be published; a resync followed';
comment on column presence.health.notifications_sent is 'notifications since the server started';
comment on column presence.health.heartbeats is 'renewals by heartbeat since the server started';
comment on column presence.health.expired is 'members removed since the server started because their lease was over';
comment on column presence.health.last_sweep_at is 'when expired members were looked for last; NULL if never';
comment on column presence.health.sweep_lag is 'how late, at most, the last sweep was that found an expired member';
comment on column presence.health.resyncs is 'how often all listeners were told to list anew, since the server started';
comment on column presence.health.sink_position is 'seq up to which the sink has had everything; NULL without a sink';
comment on column presence.health.sink_lag is 'how many seqs the sink is behind; NULL without a sink';
comment on column presence.health.last_error is
    'last error of the worker or the sink since the server started; NULL if there was none';
comment on column presence.health.last_error_at is 'when that was; NULL if there was none';
comment on column presence.health.failing_since is
    'since when something has gone wrong at each attempt; NULL when all is well';
comment on column presence.health.fast_writes is
    'members that verbs have written past the executor or the policies since the server started (presence.fast_path)';
comment on column presence.health.node is 'presence.node_name; NULL where that is empty';
comment on column presence.health.beat_age is
    'how long ago the last beat was written, or on a standby was seen: if longer than presence.node_timeout, the '
    'standby shows nobody; NULL if there was none';
comment on column presence.health.kept_wal is
    'bytes of WAL kept for logical slots of this database that nobody reads at present: servers that are away; 0 if '
    'there are none';

-- Reading functions on a standby, where presence.member can be neither read nor planned for: each has a twin that reads
-- the copy, generated from its own text. A support function tells the planner which of the two to plan.

create function _presence._reads(internal) returns internal
    language c strict as 'MODULE_PATHNAME', 'presence_reads';
comment on function _presence._reads(internal) is
    'For the planner: on a standby, and while members come back after a crash, what reads members reads the copy.';

do $$
declare
    function_name name;
    signature regprocedure;
    spoken regprocedure;
    source text;
    quoting text := current_setting('quote_all_identifiers');
begin
    perform set_config('quote_all_identifiers', 'off', true);
    foreach function_name in array array['get', 'list', 'occupancy', 'rooms', 'state', 'users'] loop
        select p.oid into strict signature from pg_proc p
        where p.pronamespace = 'presence'::regnamespace and p.proname = function_name;
        -- list itself is not written in SQL.
        spoken := case function_name when 'list' then '_presence._list(text, integer, text[])'::regprocedure else signature end;
        source := replace(pg_get_functiondef(spoken), format('FUNCTION %s(', split_part(spoken::text, '(', 1)),
                          format('FUNCTION _presence._shared_%s(', function_name));
        source := replace(source, 'presence.online o', 'presence.shared_online o');
        -- Arguments are qualified with the function's name.
        execute regexp_replace(source, format('\m%s\.', split_part(split_part(spoken::text, '(', 1), '.', 2)),
                               format('_shared_%s.', function_name), 'g');
        execute format('comment on function _presence._shared_%s(%s) is %L', function_name,
                       pg_get_function_identity_arguments(signature), 'The same by the copy, for standbys.');
        execute format('alter function %s support _presence._reads', signature);
    end loop;
    perform set_config('quote_all_identifiers', quoting, true);
end
$$;
alter function presence.history(text, timestamptz, timestamptz, integer, text, text, bigint) support _presence._reads;
alter function presence.changes(bigint, text, integer) support _presence._reads;

-- Several servers: whether they hear each other, and what is wrong with their configuration.

create function _presence._peer(node text, out heard interval, out has_conflict boolean, out members bigint) returns setof record
    language c stable parallel restricted rows 1 as 'MODULE_PATHNAME', 'presence_peer';
comment on function _presence._peer(text) is
    'How long ago this server has seen a beat of that one, NULL if not since it started; whether two servers have its name; and '
    'how many members this server has of it.';

create function _presence._cluster_problems() returns setof text
    language sql stable parallel restricted rows 10
    set search_path = pg_catalog, pg_temp
begin atomic
    with ours as (
        select c.oid, format('presence.%s', c.relname) as name from pg_class c
        where c.oid in ('presence.shared'::regclass, 'presence.node'::regclass)
    ), publications as (
        select p.oid, p.pubname, p.pubtruncate, p.pubinsert and p.pubupdate and p.pubdelete as sends_all, p.puballtables,
               ours.name, r.prqual, pg_get_expr(r.prqual, r.prrelid) as condition
        from pg_publication p cross join ours
        left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = ours.oid
        where p.puballtables or r.oid is not null
    ), subscriptions as (
        select s.oid, s.subname, s.subenabled, s.substream, s.subowner, ours.name, r.srsubstate
        from pg_subscription s join pg_subscription_rel r on r.srsubid = s.oid join ours on ours.oid = r.srrelid
        where s.subdbid = (select d.oid from pg_database d where d.datname = current_database())
    ), slots as (
        select s.slot_name, s.active, s.wal_status, s.restart_lsn from pg_replication_slots s
        where s.slot_type = 'logical' and s.database = current_database()
          and exists (select from publications)
    )
    select 'this server has no name: set presence.node_name and restart it'
    where _presence._node_name() is null
    union all
    select format('wal_level is %s, so nothing is sent to other servers: set it to logical and restart', current_setting('wal_level'))
    where current_setting('wal_level') <> 'logical'
    union all
    select format('%s is in no publication: nobody can follow this server', o.name) from ours o
    where not exists (select from publications p where p.name = o.name)
    union all
    select distinct format('publication %I sends TRUNCATE, which empties the table everywhere: alter publication %I set (publish = ''insert, update, delete'')',
                  p.pubname, p.pubname)
    from publications p where p.pubtruncate
    union all
    select distinct format('publication %I does not send all changes: alter publication %I set (publish = ''insert, update, delete'')',
                  p.pubname, p.pubname)
    from publications p where not p.sends_all
    union all
    select format('publication %I sends %s of all servers: it should have the condition node = %L', p.pubname, p.name,
                  _presence._node_name())
    from publications p where p.condition is null
    union all
    select format('publication %I sends %s where %s, and this server is called %s', p.pubname, p.name, p.condition,
                  coalesce(quote_literal(_presence._node_name()), 'nothing'))
    from publications p
    where p.condition is distinct from format('(node = %L::text)', _presence._node_name()) and p.condition is not null
    union all
    select 'no subscription brings presence.shared: this server follows nobody' where not exists (select from subscriptions)
    union all
    select format('subscription %I does not bring %s: both tables belong into the publication', s.subname, o.name)
    from (select distinct subname from subscriptions) s cross join ours o
    where not exists (select from subscriptions other where other.subname = s.subname and other.name = o.name)
    union all
    select distinct format('subscription %I is disabled: alter subscription %I enable', s.subname, s.subname)
    from subscriptions s where not s.subenabled
    union all
    select distinct format('subscription %I has no process: the server''s log says why it cannot connect or apply', s.subname)
    from subscriptions s
    where s.subenabled and not pg_is_in_recovery()
      and not exists (select from pg_stat_get_subscription(s.oid) a where a.relid is null and a.pid is not null)
    union all
    select format('subscription %I is copying %s', s.subname, s.name) from subscriptions s where s.srsubstate <> 'r'
    union all
    select distinct format('subscription %I waits for large transactions of others: alter subscription %I set (streaming = on)',
                  s.subname, s.subname)
    from subscriptions s where s.substream::text in ('f', 'false')
    union all
    select distinct format('subscription %I belongs to %s, who may not write under row-level security: it needs BYPASSRLS, or to own '
                  'the extension', s.subname, r.rolname)
    from subscriptions s join pg_roles r on r.oid = s.subowner
    join pg_class c on c.oid = 'presence.shared'::regclass
    where not r.rolsuper and not r.rolbypassrls and not pg_has_role(r.oid, c.relowner, 'usage')
    union all
    select format('slot %I is lost: its server has to subscribe anew', s.slot_name) from slots s where s.wal_status = 'lost'
    union all
    select format('nobody reads slot %I, for which %s of WAL are kept: bring its server back, or drop the slot', s.slot_name,
                  pg_size_pretty(pg_wal_lsn_diff(case when not pg_is_in_recovery() then pg_current_wal_lsn() end, s.restart_lsn)))
    from slots s where not s.active and s.wal_status <> 'lost'
    union all
    select 'max_slot_wal_keep_size is unlimited: a server that is away for long fills the disk of this one'
    where exists (select from slots) and current_setting('max_slot_wal_keep_size') = '-1'
    union all
    select format('wal_retrieve_retry_interval is %s: for so long a server that was restarted is not followed',
                  current_setting('wal_retrieve_retry_interval'))
    where exists (select from subscriptions) and current_setting('wal_retrieve_retry_interval')::interval > '2 s'
    union all
    select format('another server has the name %s, too', quote_literal(_presence._node_name()))
    from _presence._peer(_presence._node_name()) p where p.has_conflict;
end;
comment on function _presence._cluster_problems() is 'What presence.cluster() says of this server.';

create function _presence._is_copying() returns boolean
    language sql stable parallel restricted
    set search_path = pg_catalog, pg_temp
return exists (select from pg_subscription s join pg_subscription_rel r on r.srsubid = s.oid
               where s.subenabled and r.srsubstate <> 'r' and r.srrelid in ('presence.shared'::regclass, 'presence.node'::regclass));
comment on function _presence._is_copying() is 'Whether a subscription still copies what another server has.';

create function presence.cluster()
    returns table (node text, state text, beat_age interval, members bigint, library text, problems text[])
    language sql stable parallel restricted rows 10
    set search_path = pg_catalog, pg_temp
begin atomic
    select n.node,
           case when n.node = _presence._node_name() then n.state
                when p.has_conflict then 'conflict'
                when n.state = 'down' then 'down'
                when _presence._is_heard(n.node) then n.state
                when p.heard is null and _presence._is_copying() then 'copying'
                else 'silent' end,
           p.heard,
           p.members,
           n.library,
           case when n.node = _presence._node_name()
                then array(select _presence._cluster_problems())
                else array(select format('two servers have the name %L', n.node) where p.has_conflict
                           union all
                           select case when p.heard is null then 'nothing was heard of it since this server started'
                                       else format('nothing was heard of it for %s s', round(extract(epoch from p.heard))) end
                           where n.state <> 'down' and not _presence._is_heard(n.node))
           end
    from presence.node n cross join lateral _presence._peer(n.node) p
    union all
    select _presence._node_name(), 'off', null, 0, null, array(select _presence._cluster_problems())
    where not exists (select from presence.node n where n.node = _presence._node_name())
    order by 1 nulls first;
end;
comment on function presence.cluster() is
    'The servers that are known here. state is up, restoring, down (it has stopped), copying (its data is being copied '
    'for the first time, or again), silent (not heard for presence.node_timeout; its members are hidden, as with '
    'copying) or conflict (two servers have the name). beat_age: how long ago it was heard. members: how many of its '
    'members this server has. library: the version of its library. problems: what is wrong, and for this server what '
    'is missing in its own set-up. For members of pg_monitor and the owner (42501).';

create function presence.forget_node(node text) returns bigint
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_forget_node';
comment on function presence.forget_node(text) is
    'Delete what is stored here of a server that is gone for good, after its subscription was dropped. Returns how '
    'many members that were. For service roles. Errors: 22023 for this server and for one that is still heard; 42501 '
    'not a service role.';

-- A server that subscribes to all tables of another is sent these, too, but each server has its own.
create function _presence._stays_here() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_stays_here';
comment on function _presence._stays_here() is 'Leaves out what a subscription brings.';
create trigger presence_stays before insert or update or delete on _presence.secret
    for each row execute function _presence._stays_here();
create trigger presence_stays before insert or update or delete on _presence._last_seen
    for each row execute function _presence._stays_here();
create trigger presence_stays before insert or update or delete on _presence._sink
    for each row execute function _presence._stays_here();
alter table _presence.secret enable replica trigger presence_stays;
alter table _presence._last_seen enable replica trigger presence_stays;
alter table _presence._sink enable replica trigger presence_stays;

grant select on presence.node to pg_monitor;
grant execute on function _presence._peer(text), _presence._is_heard(text), _presence._is_copying(),
    _presence._cluster_problems(), presence.cluster() to pg_monitor;

-- New functions are executable by PUBLIC unless somebody says otherwise.
revoke all on function
    presence.delete(text, text, text, jsonb, text, interval),
    presence.upsert(text, jsonb, text, text, text, jsonb, interval, text[], boolean, text, interval),
    presence.update(text, jsonb, text, text, text, jsonb, text[], interval, interval),
    presence.update_many(jsonb), _presence._is_heard(text), _presence._is_elsewhere(text), _presence._reads(internal),
    _presence._peer(text), _presence._is_copying(), _presence._cluster_problems(), presence.cluster(), presence.forget_node(text),
    _presence._version_here(text, bigint),
    _presence._stays_here(), _presence._shared_before(), _presence._shared_after(), _presence._node_before(), _presence._node_after(),
    _presence._shared_get(text, text, text), _presence._shared_list(text, integer, text[]), _presence._shared_occupancy(text),
    _presence._shared_rooms(text, integer, text), _presence._shared_state(text), _presence._shared_users(text)
    from public;

-- Roles that could execute an old function may execute its replacement; and roles that could execute a function, what it
-- calls now.
do $$
declare
    given record;
begin
    for given in
        select had.made, a.grantee, a.is_grantable
        from (select old.oid, made.oid::regprocedure
              from pg_proc old
              join pg_proc made on made.proname = old.proname and made.pronamespace = 'presence'::regnamespace
              where old.pronamespace = '_presence'::regnamespace and not starts_with(old.proname, '_')
              union all
              values ('_presence._is_alive'::regproc,
                      '_presence._current_status(text, jsonb, uuid, bigint)'::regprocedure),
                     ('_presence._is_alive', '_presence._current_state(jsonb, jsonb, uuid, bigint)'),
                     ('_presence._is_alive', '_presence._node_name()'),
                     ('_presence._is_alive', '_presence._is_heard(text)'),
                     ('_presence._is_alive', '_presence._is_elsewhere(text)'),
                     ('_presence._is_alive', '_presence._version_here(text, bigint)'),
                     ('presence.get', '_presence._shared_get(text, text, text)'),
                     ('presence.list', '_presence._shared_list(text, integer, text[])'),
                     ('presence.occupancy', '_presence._shared_occupancy(text)'),
                     ('presence.rooms', '_presence._shared_rooms(text, integer, text)'),
                     ('presence.state', '_presence._shared_state(text)'),
                     ('presence.users', '_presence._shared_users(text)'),
                     ('presence.list', '_presence._list(text, integer, text[])'),
                     ('presence.list', '_presence._page(integer)'),
                     ('presence.list', '_presence._start(text[], integer)'),
                     ('presence.users', '_presence._rank(text)'),
                     ('presence.users', '_presence._ranked(integer, text)'),
                     ('presence.changes', '_presence._shown_audience(text[], boolean)'),
                     ('presence.history', '_presence._shown_audience(text[], boolean)')) had (old, made)
        join pg_proc old on old.oid = had.old,
             aclexplode(coalesce(old.proacl, acldefault('f', old.proowner))) a
    loop
        execute format('grant execute on function %s to %s%s', given.made,
                       case given.grantee when 0 then 'public' else given.grantee::regrole::text end,
                       case when given.is_grantable then ' with grant option' else '' end);
    end loop;
end $$;

-- Roles that may read members may read the copy.
do $$
declare
    given record;
begin
    for given in
        select distinct a.grantee from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'presence.online'::regclass and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
    loop
        execute format('grant select on presence.shared, presence.shared_online to %s',
                       case given.grantee when 0 then 'public' else given.grantee::regrole::text end);
    end loop;
end $$;

-- A dump omits what an extension's script grants, and with it what others were granted before on the same object. Only
-- what a new database has from the start may be left out of a dump.
update pg_init_privs i
set initprivs = array(select item from unnest(i.initprivs) item, aclexplode(array[item]) a
                      where a.grantee in (0, a.grantor, 'pg_monitor'::regrole) group by item)
where (i.classoid, i.objoid) in (
    select d.classid, d.objid
    from pg_depend d join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
    where d.deptype = 'e' and e.extname = 'presence_ext'
    union all
    values ('pg_namespace'::regclass, 'presence'::regnamespace));
