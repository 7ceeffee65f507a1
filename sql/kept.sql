-- Functions that since 0.3.0 have other arguments, or return something, as they were before. Stored calls of them go on
-- working after an upgrade, and where a dump of such a database, which grants them, is restored.

create function _presence.upsert(
    room          text,
    state         jsonb    default null,
    member_id     text     default null,
    connection_id text     default '',
    status        text     default null,
    metadata      jsonb    default null,
    ttl           interval default null,
    audience      text[]   default null,
    session       boolean  default null,
    user_id       text     default null
) returns presence.online
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_upsert';
create function _presence.update(
    room          text,
    patch         jsonb  default null,
    member_id     text   default null,
    connection_id text   default '',
    status        text   default null,
    metadata      jsonb  default null,
    audience      text[] default null
) returns setof presence.online
    language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'presence_update';
create function _presence.delete(
    room          text,
    member_id     text  default null,
    connection_id text  default '',
    state         jsonb default null,
    reason        text  default null
) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_delete';
create function _presence.act_as(user_id text, teams text[] default null) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_act_as';
create function _presence.forget(user_id text) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_forget';
create function _presence.rotate_channels(room text default null) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_rotate_channels';
create function _presence.unlisten(room text default null) returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_unlisten';

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
