-- Presence in a schema of your own, for PostGraphile and other tools that hide what belongs to an extension. Copy it, call the
-- schema as you like, take out what you do not need.
--
-- Everything runs as the caller (SECURITY INVOKER), with the rights that presence.grant_access gave: this schema adds
-- none. Left out is what needs a connection of one's own (listen) or is for whoever runs the server. What is called `after`
-- in a list is `after_key` here: lists of GraphQL have an `after` of their own.
--
-- After an upgrade of presence_ext: drop schema presence_api cascade, which takes what you have built upon it, and run the
-- file of the new version. Before DROP EXTENSION, drop it as well.

create schema presence_api;
comment on schema presence_api is 'Presence: who is here, in which room, in what state.';
grant usage on schema presence_api to public;

create view presence_api.event with (security_invoker = true) as
    select r.* from presence.event r;
comment on view presence_api.event is
    'The log: every event with its seq, in order, for presence.history_retention. An audience that starts with "-" marks a line that was made for others than the owner (a leave or enter by a changed audience); a "+" in front of a token of an update, that who has it gained sight.';
comment on column presence_api.event.seq is 'position in the database''s log of events; never goes back, also over a crash';
comment on column presence_api.event.version is 'version of the member, or of the room, after the event: the newest wins; NULL for resync and position';
comment on column presence_api.event.event is 'enter, update or leave of a member, or room: metadata of a room; resync and position of presence.changes';
comment on column presence_api.event.room is 'the room; NULL for resync and position';
comment on column presence_api.event.member_id is 'who or what was present; NULL where the event is no member''s';
comment on column presence_api.event.connection_id is 'which tab, device or connection, often empty; NULL where the event is no member''s';
comment on column presence_api.event.user_id is 'who owned the member; NULL where the event is no member''s';
comment on column presence_api.event.status is 'the status after the event; NULL is none';
comment on column presence_api.event.state is 'the state after the event, of a leave the last one or the last word; NULL where the event is no member''s, or too much was written at once';
comment on column presence_api.event.metadata is 'the metadata after the event, of the member or the room; NULL where too much was written at once';
comment on column presence_api.event.connections is 'how many members with the same room, member_id and audience there are after the event: 1 on enter is "came", 0 on leave is "went"; NULL where the event is no member''s';
comment on column presence_api.event.reason is 'of a leave: left, expired, disconnected, removed, unreachable (its server is not heard) or hidden (from those who may not see it any more); else NULL';
comment on column presence_api.event.at is 'when it happened; for an expiry, when the lease ended; NULL for position';
comment on column presence_api.event.joined_at is 'when the stay began; NULL where the event is no member''s';
comment on column presence_api.event.audience is 'whom the event is for: a list of tokens, which functions show to the owner and service roles only; if it begins with "-", for those who lost or gained sight and not for the owner';
comment on column presence_api.event.node is 'the server where it happened; NULL where presence.node_name is empty';

create view presence_api.last_seen with (security_invoker = true) as
    select r.* from presence.last_seen r;
comment on view presence_api.last_seen is
    'Users whom the caller may see, or could see last: whether they are online and when they were last seen. Survives their leave and a crash.';
comment on column presence_api.last_seen.user_id is 'the user';
comment on column presence_api.last_seen.online is 'whether one of the user''s members is here and visible to the caller';
comment on column presence_api.last_seen.last_seen_at is 'when the user was last seen; never NULL';

create view presence_api.online with (security_invoker = true) as
    select r.* from presence.online r;
comment on view presence_api.online is
    'Every member that is here and that the caller may see. A member is here until its lease ends, to the microsecond. audience and session_pid are NULL except for the owner and service roles; node where the server has no name (presence.node_name).';
comment on column presence_api.online.room is 'the room';
comment on column presence_api.online.member_id is 'who or what is present: a label, by default the user id; trust user_id';
comment on column presence_api.online.connection_id is 'which tab, device or connection; empty where nobody tells them apart';
comment on column presence_api.online.user_id is 'who owns the member: the identity that wrote it';
comment on column presence_api.online.status is 'a short text such as online, away, typing; NULL is none';
comment on column presence_api.online.state is 'the live state, any JSON value: cursor, selection, tool';
comment on column presence_api.online.metadata is 'slow-changing facts: name, avatar';
comment on column presence_api.online.audience is 'who may see the member, besides its owner: a list of tokens; NULL except for the owner and service roles';
comment on column presence_api.online.version is 'grows with every visible change and never goes back: the newest wins';
comment on column presence_api.online.joined_at is 'when this stay began';
comment on column presence_api.online.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence_api.online.last_seen_at is 'when the lease was renewed last';
comment on column presence_api.online.expires_at is 'when the lease ends, or when the member leaves as announced; NULL for a session member without ttl, which has no lease';
comment on column presence_api.online.ttl is 'how long the lease lasts after each renewal; NULL for a session member without ttl';
comment on column presence_api.online.session_pid is 'the process of the database session that the member is bound to, NULL if it is bound to none; NULL except for the owner and service roles';
comment on column presence_api.online.node is 'the server where the member is; NULL where presence.node_name is empty';

create view presence_api.room with (security_invoker = true) as
    select r.* from presence.room r;
comment on view presence_api.room is
    'Settings and shared state of rooms. audience: who may read this row, and the default of members who enter; count_audience: who may have the full numbers of presence.occupancy; ttl: the default of members who enter; max_members: how many may be here at once; keep_history: whether presence.history shows its events. Written by service roles and whoever may manage the room.';
comment on column presence_api.room.room is 'the room';
comment on column presence_api.room.metadata is 'state that the room shares; a change is a room event';
comment on column presence_api.room.audience is 'who may read this row, and whom members who enter are shown to: a list of tokens; NULL is presence.default_audience';
comment on column presence_api.room.count_audience is 'who may have the full numbers of presence.occupancy and hears when they change: a list of tokens; NULL is nobody';
comment on column presence_api.room.ttl is 'how long leases of members who enter last; NULL is presence.default_ttl';
comment on column presence_api.room.max_members is 'how many members may be here at once; NULL is no limit';
comment on column presence_api.room.keep_history is 'whether presence.history shows its events';
comment on column presence_api.room.version is 'grows with every change and never goes back';
comment on column presence_api.room.created_at is 'when the row was made';
comment on column presence_api.room.updated_at is 'when the row was changed last';

grant select on all tables in schema presence_api to public;

create function presence_api.changes(
    after_seq bigint,
    room text default null,
    max_rows integer default 1000
) returns setof presence_api.event
    language sql stable
begin atomic
    select r.* from presence.changes(after_seq => changes.after_seq, room => changes.room, max_rows => changes.max_rows) r;
end;
comment on function presence_api.changes(bigint, text, integer) is
    'The events after a seq that the caller may see, oldest first, at most max_rows (1 to 1000) of them. The last row is always event position, with the seq up to which it looked: go on from there. When the log does not reach back to after_seq the first row is resync: forget everything and list. Errors: 22023 an invalid room, max_rows or after_seq; 25006 a standby.';

create function presence_api.delete(
    room text,
    member_id text default null,
    connection_id text default '',
    state jsonb default null,
    reason text default null,
    after interval default null
) returns integer
    language sql volatile
begin atomic
    select presence.delete(room => delete.room, member_id => delete.member_id, connection_id => delete.connection_id, state => delete.state, reason => delete.reason, after => delete.after);
end;
comment on function presence_api.delete(text, text, text, jsonb, text, interval) is
    'Leave. state is a last word, shown by the leave event. A NULL connection_id means all connections of the member. With after they leave when that time is over, unless an upsert comes first (heartbeat and update do not cancel it) or their lease ends first; the last call counts. Returns how many leave; 0 if nobody is there. Service roles may give a reason: left, disconnected or removed. Errors: 22023 invalid names, reason or after; 42501 no identity, or another user''s member; 25006 a read-only transaction or a standby.';

create function presence_api.delete_all(
    user_id text default null,
    connection_id text default null
) returns integer
    language sql volatile
begin atomic
    select presence.delete_all(user_id => delete_all.user_id, connection_id => delete_all.connection_id);
end;
comment on function presence_api.delete_all(text, text) is
    'Leave every room, as on sign-out; with connection_id, only that connection. A user_id other than the caller''s requires a service role. Returns how many members left. Errors: 22023 invalid names; 42501 no identity, or another user; 25006 a read-only transaction or a standby.';

create function presence_api.delete_many(
    members jsonb
) returns integer
    language sql volatile
begin atomic
    select presence.delete_many(members => delete_many.members);
end;
comment on function presence_api.delete_many(jsonb) is
    'presence.delete for an array of objects with the names of its arguments. All or nothing. Returns how many left. Errors: as presence.delete; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the element.';

create function presence_api.delete_room(
    room text
) returns integer
    language sql volatile
begin atomic
    select presence.delete_room(room => delete_room.room);
end;
comment on function presence_api.delete_room(text) is
    'Delete the settings of a room. Its members leave with reason removed; returns how many. For service roles and whoever may manage the room. Errors: 22023 an invalid room; 42501 not allowed to manage it; 25006 a read-only transaction or a standby.';

create function presence_api.get(
    room text,
    member_id text default null,
    connection_id text default null
) returns setof presence_api.online
    language sql stable
begin atomic
    select r.* from presence.get(room => get.room, member_id => get.member_id, connection_id => get.connection_id) r;
end;
comment on function presence_api.get(text, text, text) is
    'One member, by default the caller: all its connections, or the one with this connection_id. Errors: 22023 an invalid name.';

create function presence_api.get_room(
    room text
) returns setof presence_api.room
    language sql stable
begin atomic
    select r.* from presence.get_room(room => get_room.room) r;
end;
comment on function presence_api.get_room(text) is
    'The settings of a room, if it has any and the caller may read them. Errors: 22023 an invalid room.';

create function presence_api.heartbeat(
    room text,
    member_id text default null,
    connection_id text default ''
) returns boolean
    language sql volatile
begin atomic
    select presence.heartbeat(room => heartbeat.room, member_id => heartbeat.member_id, connection_id => heartbeat.connection_id);
end;
comment on function presence_api.heartbeat(text, text, text) is
    'Renew the lease: touches no table, writes no WAL, works in a read-only transaction, and is not undone by a rollback. Returns false if you have no such member: call presence.upsert then. Errors: 22023 invalid names; 42501 no identity; 25006 a standby, or a read-only transaction and a lease without a slot.';

create function presence_api.heartbeat_many(
    rooms text[],
    member_ids text[] default null,
    connection_ids text[] default null
) returns table (room text, member_id text, connection_id text)
    language sql volatile
begin atomic
    select r.* from presence.heartbeat_many(rooms => heartbeat_many.rooms, member_ids => heartbeat_many.member_ids, connection_ids => heartbeat_many.connection_ids) r;
end;
comment on function presence_api.heartbeat_many(text[], text[], text[]) is
    'Renew many leases. Returns those that do not exist. NULL member_ids stands for the caller, NULL connection_ids for the empty connection_id. Errors: 22023 invalid names, or arrays of different lengths; otherwise as presence.heartbeat.';

create function presence_api.history(
    room text,
    since timestamptz default null,
    until timestamptz default null,
    max_rows integer default 100,
    direction text default 'backwards',
    member_id text default null,
    before_seq bigint default null
) returns setof presence_api.event
    language sql stable
begin atomic
    select r.* from presence.history(room => history.room, since => history.since, until => history.until, max_rows => history.max_rows, direction => history.direction, member_id => history.member_id, before_seq => history.before_seq) r;
end;
comment on function presence_api.history(text, timestamptz, timestamptz, integer, text, text, bigint) is
    'Events of a room that the caller may see, in the order of seq. since is inclusive, until exclusive; direction is backwards or forwards; max_rows is 1 to 1000; member_id selects one member; before_seq is for paging backwards. Reaches back for presence.history_retention; nothing for rooms with keep_history = false. Errors: 22023 an invalid argument; 25006 a standby.';

create function presence_api.is_service() returns boolean
    language sql stable
begin atomic
    select presence.is_service();
end;
comment on function presence_api.is_service() is
    'Whether the caller acts for all users: a superuser, a role with BYPASSRLS, the owner of the extension, or one of presence.service_roles.';

create function presence_api.list(
    room text default null,
    max_rows integer default null,
    after_key text[] default null
) returns setof presence_api.online
    language sql stable
begin atomic
    select r.* from presence.list(room => list.room, max_rows => list.max_rows, after => list.after_key) r;
end;
comment on function presence_api.list(text, integer, text[]) is
    'Who is here, in the order of the key: in the room, or in all rooms (NULL). max_rows is 1 to 10000; NULL is the whole room, or of all rooms 1000. after_key is the key of the last row of the page before: {member_id, connection_id}, or {room, member_id, connection_id} when room is NULL. Errors: 22023 an invalid room, max_rows or after.';

create function presence_api.may(
    room text,
    action text
) returns boolean
    language sql stable
begin atomic
    select presence.may(room => may.room, action => may.action);
end;
comment on function presence_api.may(text, text) is
    'Whether the caller may do this in the room now, by the authorizer and the grants: read (list shows what is shared with the caller), join (upsert works; false for a caller without an identity), manage (set_room works). An error of the authorizer is the statement''s error; NULL from it is a no. Errors: 22023 an invalid room or action.';

create function presence_api.occupancy(
    room text default null
) returns table (members bigint, users bigint)
    language sql stable
begin atomic
    select r.* from presence.occupancy(room => occupancy.room) r;
end;
comment on function presence_api.occupancy(text) is
    'The number of members and users in the room (NULL: anywhere) that the caller may see. If the room''s count_audience includes the caller, everybody counts. Errors: 22023 an invalid room.';

create function presence_api.rooms(
    prefix text default '',
    max_rows integer default 100,
    after_key text default null
) returns table (room text, members bigint, users bigint)
    language sql stable
begin atomic
    select r.* from presence.rooms(prefix => rooms.prefix, max_rows => rooms.max_rows, after => rooms.after_key) r;
end;
comment on function presence_api.rooms(text, integer, text) is
    'The rooms in which the caller can see somebody, with the numbers of members and users, in the order of their names. prefix is taken literally; after_key is the last room of the page before; max_rows is 1 to 1000. Errors: 22023 an invalid max_rows.';

create function presence_api.seq() returns bigint
    language sql stable
begin atomic
    select presence.seq();
end;
comment on function presence_api.seq() is
    'The seq of the last published event. Errors: 25006 a standby.';

create function presence_api.set_room(
    room text,
    metadata jsonb default null,
    patch jsonb default null,
    audience text[] default null,
    count_audience text[] default null,
    ttl interval default null,
    max_members integer default null,
    keep_history boolean default null
) returns presence_api.room
    language sql volatile
begin atomic
    select r.* from presence.set_room(room => set_room.room, metadata => set_room.metadata, patch => set_room.patch, audience => set_room.audience, count_audience => set_room.count_audience, ttl => set_room.ttl, max_members => set_room.max_members, keep_history => set_room.keep_history) r;
end;
comment on function presence_api.set_room(text, jsonb, jsonb, text[], text[], interval, integer, boolean) is
    'Create or change the settings of a room. NULL keeps the current value (to set a column to NULL, UPDATE the table). patch is a JSON merge patch (RFC 7396) on metadata. A change of metadata is a room event. For service roles and whoever may manage the room. Errors: 22023 invalid values; 42501 not allowed to manage the room; 54000 metadata too large; 25006 a read-only transaction or a standby.';

create function presence_api.state(
    room text
) returns jsonb
    language sql stable
begin atomic
    select presence.state(room => state.room);
end;
comment on function presence_api.state(text) is
    'The room as Supabase''s presenceState() returns it: {member_id: [{presence_ref, ...state}]}, one element for each connection; presence_ref is the version as text. A state that is not an object appears as {presence_ref, state}. Errors: 22023 an invalid room.';

create function presence_api.tokens() returns text[]
    language sql stable
begin atomic
    select presence.tokens();
end;
comment on function presence_api.tokens() is
    'The audience tokens that the caller has: any, users, user:ID, team:ID, role:NAME, and room:NAME for each room where the caller is present.';

create function presence_api.update(
    room text,
    patch jsonb default null,
    member_id text default null,
    connection_id text default '',
    status text default null,
    metadata jsonb default null,
    audience text[] default null,
    ttl interval default null,
    revert_after interval default null
) returns setof presence_api.online
    language sql volatile
begin atomic
    select r.* from presence.update(room => update.room, patch => update.patch, member_id => update.member_id, connection_id => update.connection_id, status => update.status, metadata => update.metadata, audience => update.audience, ttl => update.ttl, revert_after => update.revert_after) r;
end;
comment on function presence_api.update(text, jsonb, text, text, text, jsonb, text[], interval, interval) is
    'Change a member that is here by a JSON merge patch (RFC 7396) on state, and renew its lease. Returns no row if it is not here: a late update does not bring back a member that has left. revert_after and errors as in presence.upsert; 22023 also for a patch that is not an object.';

create function presence_api.update_many(
    members jsonb
) returns integer
    language sql volatile
begin atomic
    select presence.update_many(members => update_many.members);
end;
comment on function presence_api.update_many(jsonb) is
    'presence.update for an array of objects with the names of its arguments. Only members that are here are changed. All or nothing; if a key is repeated, the last element wins. Returns how many are here. Errors: as presence.update; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the element.';

create function presence_api.upsert(
    room text,
    state jsonb default null,
    member_id text default null,
    connection_id text default '',
    status text default null,
    metadata jsonb default null,
    ttl interval default null,
    audience text[] default null,
    session boolean default null,
    user_id text default null,
    revert_after interval default null
) returns presence_api.online
    language sql volatile
begin atomic
    select r.* from presence.upsert(room => upsert.room, state => upsert.state, member_id => upsert.member_id, connection_id => upsert.connection_id, status => upsert.status, metadata => upsert.metadata, ttl => upsert.ttl, audience => upsert.audience, session => upsert.session, user_id => upsert.user_id, revert_after => upsert.revert_after) r;
end;
comment on function presence_api.upsert(text, jsonb, text, text, text, jsonb, interval, text[], boolean, text, interval) is
    'Enter a room, or change what is there. NULL keeps the current value (on enter: {}, no status, {}, the default ttl and audience); an empty status clears it; audience {} is visible to the owner only; ttl 0 is the default, otherwise 1 second to 30 days. If nothing changes, it only renews the lease: no event, no write. session => true: leaves when this database session ends. revert_after: after this time, at most 100 years, what this call changed in status and state is undone, unless a later call sets it again. Errors: 22023 invalid names, ttl, audience or revert_after; 54000 state too large, or too many members; 42501 no identity, a member_id that is not yours, another user''s member, not authorized to join; 0A000 no session members here; 25006 a read-only transaction or a standby. For a JSON merge patch see presence.update.';

create function presence_api.upsert_many(
    members jsonb
) returns integer
    language sql volatile
begin atomic
    select presence.upsert_many(members => upsert_many.members);
end;
comment on function presence_api.upsert_many(jsonb) is
    'presence.upsert for an array of objects with the names of its arguments (or patch, a JSON merge patch, instead of state). All or nothing; if a key is repeated, the last element wins. Returns the number of members. Errors: as presence.upsert; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the element.';

create function presence_api.user_id() returns text
    language sql stable
begin atomic
    select presence.user_id();
end;
comment on function presence_api.user_id() is
    'Who is asking: for a login of presence.trusted_login_roles the sub of request.jwt.claims; for a superuser the same if it is set; NULL for presence.anonymous_roles; else current_user. Claims count only in a client''s own session: in background processes and in what ANALYZE, REINDEX, REFRESH and the like run, it goes by the role.';

create function presence_api.users(
    room text
) returns table (user_id text, members bigint, status text, state jsonb, metadata jsonb, joined_at timestamptz, last_seen_at timestamptz)
    language sql stable
begin atomic
    select r.* from presence.users(room => users.room) r;
end;
comment on function presence_api.users(text) is
    'The room with one row for each user: the number of members, status, state and metadata of the most recently active one, the first joined_at and the last last_seen_at. If presence.status_rank lists statuses of the user''s members, the highest of these is shown. Errors: 22023 an invalid room.';
