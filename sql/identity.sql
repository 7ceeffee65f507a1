-- The identity of the caller.

create function presence.user_id() returns text
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_user_id';
comment on function presence.user_id() is
    'Who is asking: for a login of presence.trusted_login_roles the sub of request.jwt.claims; for a superuser the '
    'same if it is set; NULL for presence.anonymous_roles; else current_user. Claims count only in a client''s own '
    'session: in background processes and in what ANALYZE, REINDEX, REFRESH and the like run, it goes by the role.';

create function presence.is_service() returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_is_service';
comment on function presence.is_service() is
    'Whether the caller acts for all users: a superuser, a role with BYPASSRLS, the owner of the extension, or one '
    'of presence.service_roles.';

create function presence.tokens() returns text[]
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_tokens';
comment on function presence.tokens() is
    'The audience tokens that the caller has: any, users, user:ID, team:ID, role:NAME, and room:NAME for each room '
    'where the caller is present.';

create function presence.may(room text, action text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_allows';
comment on function presence.may(text, text) is
    'Whether the caller may do this in the room now, by the authorizer and the grants: read (list shows what is shared '
    'with the caller), join (upsert works; false for a caller without an identity), manage (set_room works). An error '
    'of the authorizer is the statement''s error; NULL from it is a no. Errors: 22023 an invalid room or action.';

create function presence.act_as(user_id text, teams text[] default null) returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_act_as';
comment on function presence.act_as(text, text[]) is
    'Act as this user until the transaction ends: sets request.jwt.claims. Returns true. For logins in '
    'presence.trusted_login_roles and superusers (else 42501), in their own session (else 0A000). '
    'presence.grant_access does not grant it: GRANT EXECUTE to the role that the application''s server logs in '
    'with.';

-- Immutable: the setting changes only when the server starts, and no plan outlives that.
create function _presence._node_name() returns text
    language c immutable parallel safe as 'MODULE_PATHNAME', 'presence_node_name';
comment on function _presence._node_name() is 'presence.node_name, NULL where that is empty.';
