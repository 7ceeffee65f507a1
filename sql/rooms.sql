-- Rooms: optional settings and shared state. A room exists as soon as it has a member; this table is for rooms
-- that have more than that.

create table presence.room (
    room            text        primary key,
    metadata        jsonb       not null default '{}',
    audience        text[],
    count_audience  text[],
    ttl             interval,
    max_members     integer,
    keep_history    boolean     not null default true,
    version         bigint      not null default 0,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now()
);
select pg_catalog.pg_extension_config_dump('presence.room', '');
comment on table presence.room is
    'Settings and shared state of rooms. audience: who may read this row, and the default of members who enter; '
    'count_audience: who may have the full numbers of presence.occupancy; ttl: the default of members who enter; '
    'max_members: how many may be here at once; keep_history: whether presence.history shows its events. Written '
    'by service roles and whoever may manage the room.';

create function _presence._default_audience(room text) returns text[]
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_default_audience';
comment on function _presence._default_audience(text) is 'presence.default_audience for this room.';
create function _presence._same_json(jsonb, jsonb) returns boolean
    language c immutable strict parallel safe as 'MODULE_PATHNAME', 'presence_same_json';
comment on function _presence._same_json(jsonb, jsonb) is
    'Whether both have the same bytes. For jsonb = a number is equal to the same with a thousand zeros behind.';
create function _presence._require_manage(room text) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_require_manage';
comment on function _presence._require_manage(text) is 'An error (42501) unless the caller may manage the room.';
create function _presence._tell_room(room text, metadata jsonb, audience text[], old_audience text[]) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_tell_room';
comment on function _presence._tell_room(text, jsonb, text[], text[]) is
    'Make a room event, once this transaction is committed, if metadata is within presence.max_state_size (54000). '
    'old_audience is NULL if there was none.';

create function _presence._room_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_room_before';
comment on function _presence._room_before() is 'Makes the row of a room right before it is written.';

-- Runs with the owner's rights, so others must not call it: nobody can make up an event.
create function _presence._room_after() returns trigger
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
comment on function _presence._room_after() is 'A change of metadata is a room event.';

create trigger presence_before before insert or update on presence.room
    for each row execute function _presence._room_before();
create trigger presence_after after insert or update on presence.room
    for each row execute function _presence._room_after();

alter table presence.room enable row level security;
create policy room_read on presence.room for select using (
    (select presence.is_service())
    or (coalesce(audience, _presence._default_audience(room)) operator(pg_catalog.&&) (select presence.tokens())
        and _presence._may(room, 'read'))
    or _presence._may(room, 'manage')
);
create policy room_make on presence.room for insert with check (_presence._may(room, 'manage'));
create policy room_change on presence.room for update using (_presence._may(room, 'manage'));
create policy room_drop on presence.room for delete using (_presence._may(room, 'manage'));

create function presence.set_room(
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
comment on function presence.set_room(text, jsonb, jsonb, text[], text[], interval, integer, boolean) is
    'Create or change the settings of a room. NULL keeps the current value (to set a column to NULL, UPDATE the '
    'table). patch is a JSON merge patch (RFC 7396) on metadata. A change of metadata is a room event. For service '
    'roles and whoever may manage the room. Errors: 22023 invalid values; 42501 not allowed to manage the room; 54000 '
    'metadata too large; 25006 a read-only transaction or a standby.';

create function presence.get_room(room text) returns setof presence.room
    language sql stable parallel restricted rows 1
begin atomic
    -- The row as a whole, because others may have added columns.
    select r from presence.room r where r.room operator(pg_catalog.=) _presence._room(get_room.room);
end;
comment on function presence.get_room(text) is
    'The settings of a room, if it has any and the caller may read them. Errors: 22023 an invalid room.';

create function presence.delete_room(room text) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_delete_room';
comment on function presence.delete_room(text) is
    'Delete the settings of a room. Its members leave with reason removed; returns how many. For service roles and '
    'whoever may manage the room. Errors: 22023 an invalid room; 42501 not allowed to manage it; 25006 a read-only '
    'transaction or a standby.';
