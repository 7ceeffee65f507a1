create function presence.listen(room text default null) returns setof text
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_listen';
comment on function presence.listen(text) is
    'LISTEN in this session, from its commit on, to the channels that the caller may hear for the room (NULL: all '
    'rooms). Returns their names. Call it again to refresh them. Errors: 22023 an invalid room; 42501 not allowed to '
    'read it; 0A000 where sessions are shared (presence.session_features, presence.trusted_login_roles) or outside of '
    'a client''s own session; 25006 a standby.';

create function presence.unlisten(room text default null) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_unlisten';
comment on function presence.unlisten(text) is
    'Undo presence.listen with the same argument (NULL: all rooms). Returns how many channels were closed. Errors: '
    '22023 an invalid room; 0A000 outside of a client''s own session.';

create function presence.channels(room text default null) returns setof text
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_channels';
comment on function presence.channels(text) is
    'The channel names that presence.listen would listen to, for drivers that send LISTEN themselves. The first one is '
    'always presence. The others change when they are rotated and with a crash: ask after each connect, on relisten '
    'and on resync. Errors: 22023 an invalid room; 42501 not allowed to read it; 0A000 outside of a client''s own '
    'session; 25006 a standby.';

create function presence.rotate_channels(room text default null) returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_rotate_channels';
comment on function presence.rotate_channels(text) is
    'Give the channels of the room (NULL: all channels) new names once this transaction is committed; listeners of the '
    'old ones hear relisten. Returns true. For service roles, and for a room also for whoever may manage it. Errors: '
    '22023 an invalid room; 42501 not allowed; 25006 a standby.';

create function presence.seq() returns bigint
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_seq';
comment on function presence.seq() is
    'The seq of the last published event. Errors: 25006 a standby.';

create function _presence._log_floor() returns bigint
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_log_floor';
comment on function _presence._log_floor() is 'The log has every event after this seq.';
create function _presence._log_position() returns bigint
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_log_position';
comment on function _presence._log_position() is 'The newest seq that this statement sees, whoever may see its row.';

create function _presence._seq(after_seq bigint) returns bigint
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_given_seq';
comment on function _presence._seq(bigint) is 'The seq, if it is one (22023).';

create function _presence._shown_audience(audience text[], whole boolean) returns jsonb
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_shown_audience';
comment on function _presence._shown_audience(text[], boolean) is
    'What a reader of the log is shown instead of a line''s audience, as an object with that column: everybody who sees the '
    'member then, or nothing.';

-- Rows are built by column name, because others may have added columns to the table.
create function presence.changes(after_seq bigint, room text default null, max_rows integer default 1000)
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
comment on function presence.changes(bigint, text, integer) is
    'The events after a seq that the caller may see, oldest first, at most max_rows (1 to 1000) of them. The last row '
    'is always event position, with the seq up to which it looked: go on from there. When the log does not reach back '
    'to after_seq the first row is resync: forget everything and list. Errors: 22023 an invalid room, max_rows or '
    'after_seq; 25006 a standby.';
