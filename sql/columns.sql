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
