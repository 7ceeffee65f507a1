-- The past: events, and when users were last seen.

create function _presence._keeps_history(room text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_keeps_history';
comment on function _presence._keeps_history(text) is
    'Whether presence.history shows this room: by presence.history_retention and the room''s keep_history.';
create function _presence._direction(direction text) returns boolean
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_direction';
comment on function _presence._direction(text) is 'True for forwards, false for backwards, else 22023.';

create function presence.history(
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
comment on function presence.history(text, timestamptz, timestamptz, integer, text, text, bigint) is
    'Events of a room that the caller may see, in the order of seq. since is inclusive, until exclusive; direction is '
    'backwards or forwards; max_rows is 1 to 1000; member_id selects one member; before_seq is for paging backwards. '
    'Reaches back for presence.history_retention; nothing for rooms with keep_history = false. Errors: 22023 an '
    'invalid argument; 25006 a standby.';

-- Logged, to survive a crash. Written by the worker, in batches.
create table _presence._last_seen (
    user_id       text        primary key,
    last_seen_at  timestamptz not null,
    room          text        not null,
    audience      text[]      not null
) with (fillfactor = 70);
comment on table _presence._last_seen is
    'When each user was last seen, where and by whom to be seen; read presence.last_seen. Kept for '
    'presence.last_seen_retention.';
alter table _presence._last_seen enable row level security;
create policy last_seen_read on _presence._last_seen for select using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or ((select _presence._has_builtin_policies())
        and audience operator(pg_catalog.&&) (select presence.tokens()) and _presence._may(room, 'read'))
);

create view presence.last_seen with (security_invoker = true) as
select o.user_id, true as online, max(o.last_seen_at) as last_seen_at
from presence.online o
group by o.user_id
union all
select l.user_id, false, l.last_seen_at
from _presence._last_seen l
where not exists (select from presence.online o where o.user_id operator(pg_catalog.=) l.user_id);
comment on view presence.last_seen is
    'Users whom the caller may see, or could see last: whether they are online and when they were last seen. '
    'Survives their leave and a crash.';

create function presence.forget(user_id text) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_forget';
comment on function presence.forget(text) is
    'Erase a user from members, log, last_seen and shared. What the leave of members that were still here puts into '
    'the log is erased once it is published (presence.wait_for_flush). Returns how many rows there were. For service '
    'roles. Errors: 22023 an invalid user_id; 42501 not a service role; 25006 a standby.';
