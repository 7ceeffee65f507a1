-- Leases: a row of presence.member combined with its slot in shared memory.
-- All functions take the row's (key_hash, version, generation, deadline, session).

create function _presence._expires_at(uuid, bigint, bigint, bigint, bigint) returns timestamptz
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_expires_at';
comment on function _presence._expires_at(uuid, bigint, bigint, bigint, bigint) is
    'When the lease of a row ends; NULL if it never does, or the member is gone.';

create function _presence._last_seen_at(uuid, bigint, bigint, bigint, bigint, interval, timestamptz)
    returns timestamptz
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_last_seen_at';
comment on function _presence._last_seen_at(uuid, bigint, bigint, bigint, bigint, interval, timestamptz) is
    'When the lease of a row was last renewed; NULL if the member is gone.';

create function _presence._is_alive(uuid, bigint, bigint, bigint, bigint) returns boolean
    language c stable parallel restricted cost 1 as 'MODULE_PATHNAME', 'presence_is_alive';
comment on function _presence._is_alive(uuid, bigint, bigint, bigint, bigint) is
    'Whether the lease of a row has not run out, by the clock.';

create function _presence._has_slot(uuid) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_has_slot';
comment on function _presence._has_slot(uuid) is 'Whether the lease of a row is in shared memory.';

-- A row with what has reverted by now. Both functions take the row's (reverts, key_hash, version).

create function _presence._current_status(status text, jsonb, uuid, bigint) returns text
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_current_status';
comment on function _presence._current_status(text, jsonb, uuid, bigint) is
    'The status of a row as it is now, of which something will be undone.';

create function _presence._current_state(state jsonb, jsonb, uuid, bigint) returns jsonb
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_current_state';
comment on function _presence._current_state(jsonb, jsonb, uuid, bigint) is
    'The state of a row as it is now, of which something will be undone.';

create function _presence._member_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_member_before';
comment on function _presence._member_before() is 'Makes a row right before it is written.';
create function _presence._member_after() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_member_after';
comment on function _presence._member_after() is 'Notes what was written, for leases and events at commit.';

do $$
declare
    relation text;
begin
    foreach relation in array array['presence.member', '_presence.member_twin'] loop
        execute format('create trigger presence_before before insert or update or delete on %s
                            for each row execute function _presence._member_before()', relation);
        execute format('create trigger presence_after after insert or update or delete on %s
                            for each row execute function _presence._member_after()', relation);
        execute format('create trigger presence_truncate before truncate on %s
                            for each statement execute function _presence._member_before()', relation);
        execute format('alter table %s enable always trigger presence_before', relation);
        execute format('alter table %s enable always trigger presence_after', relation);
        execute format('alter table %s enable always trigger presence_truncate', relation);
    end loop;
end
$$;
