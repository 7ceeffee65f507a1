create function presence.listen(room text default null) returns setof text
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_listen';
comment on function presence.listen(text) is
    'LISTEN, in this session and from its commit on, to the channels that the caller''s rights open for the room '
    '(NULL: all rooms); returns their names. Again: refreshes the rights. Refused where the caller '
    'may not read the room (42501), and where sessions are shared and outside of a client''s own session (0A000).';

create function presence.unlisten(room text default null) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_unlisten';
comment on function presence.unlisten(text) is 
    'Stop listening to the channels of the room (NULL: of all rooms). Returns how many presence.listen had opened for it.';

create function presence.channels(room text default null) returns setof text
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_channels';
comment on function presence.channels(text) is
    'The channel names that presence.listen would listen to, for drivers that send LISTEN themselves. The first one is '
    'presence, always. The others change now and then, and with a crash: ask after each connect. Refused where the caller '
    'may not read the room (42501), and outside of a client''s own session (0A000).';

create function presence.rotate_channels(room text default null) returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_rotate_channels';
comment on function presence.rotate_channels(text) is
    'Give the channels of the room (NULL: all channels) new names, once this transaction is committed; listeners '
    'of the old ones hear relisten. Returns true. For service roles, and for whoever may manage the room (42501).';

create function presence.seq() returns bigint
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_seq';
comment on function presence.seq() is 'The seq of the last published event.';

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
    'The events after a seq that the caller may see, oldest first, at most max_rows (1 to 1000, else 22023) of them. The last '
    'row is always event position, with the seq up to which it looked: go on from there. When the log does not '
    'reach back to after_seq the first row is resync: forget everything and list.';
