-- For gateways: a connection that speaks for many users.

create function presence.upsert_many(members jsonb) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_upsert_many';
comment on function presence.upsert_many(jsonb) is
    'presence.upsert for an array of objects with the names of its arguments (or patch, a JSON merge patch, instead of '
    'state). All or nothing; if a key is repeated, the last element wins. Returns the number of members. Errors: as '
    'presence.upsert; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the '
    'element.';

create function presence.update_many(members jsonb) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_update_many';
comment on function presence.update_many(jsonb) is
    'presence.update for an array of objects with the names of its arguments. Only members that are here are changed. '
    'All or nothing; if a key is repeated, the last element wins. Returns how many are here. Errors: as '
    'presence.update; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 names the '
    'element.';

create function presence.delete_many(members jsonb) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_delete_many';
comment on function presence.delete_many(jsonb) is
    'presence.delete for an array of objects with the names of its arguments. All or nothing. Returns how many left. '
    'Errors: as presence.delete; 22023 for an unknown name; 22007 for text that is no interval. The DETAIL of a 22023 '
    'names the element.';
