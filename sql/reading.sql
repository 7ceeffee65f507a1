-- Argument checks that raise the extension's errors, for functions in SQL.
create function _presence._limit(max_rows integer) returns bigint
    language c immutable parallel safe as 'MODULE_PATHNAME', 'presence_limit';
comment on function _presence._limit(integer) is 'max_rows, if it is 1 to 1000 (22023).';
create function _presence._room(room text) returns text
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_room';
comment on function _presence._room(text) is 'The room, if it is a name (22023).';
create function _presence._page(max_rows integer) returns bigint
    language c immutable parallel safe as 'MODULE_PATHNAME', 'presence_page';
comment on function _presence._page(integer) is 'max_rows of presence.list, if it is NULL or 1 to 10000 (22023).';
create function _presence._start(after text[], parts integer) returns text[]
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_start';
comment on function _presence._start(text[], integer) is
    'after, if it has that many parts (22023); where it is NULL, as many that are before all names.';

create function presence.list(room text default null, max_rows integer default null, after text[] default null)
    returns setof presence.online
    language c stable parallel restricted rows 100 as 'MODULE_PATHNAME', 'presence_list';
comment on function presence.list(text, integer, text[]) is
    'Who is here, in the order of the key: in the room, or in all rooms (NULL). max_rows is 1 to 10000; NULL is the '
    'whole room, or of all rooms 1000. after is the key of the last row of the page before: {member_id, '
    'connection_id}, or {room, member_id, connection_id} when room is NULL. Errors: 22023 an invalid room, max_rows or '
    'after.';

-- The same as a SELECT, for when list cannot take its fast path. Two plain index scans; the arguments select one of
-- them. Members with the same key on several servers are not separated: a page ends after all of them.
create function _presence._list(room text, max_rows integer, after text[]) returns setof presence.online
    language sql stable parallel restricted rows 100
begin atomic
    (select o.* from presence.online o
     where _list.room is not null
       and _presence._room(_list.room) is not null and o.room operator(pg_catalog.=) _list.room
       and (o.member_id, o.connection_id) operator(pg_catalog.>)
           ((_presence._start(_list.after, 2))[1], (_presence._start(_list.after, 2))[2])
     order by o.member_id, o.connection_id
     fetch first coalesce(_presence._page(_list.max_rows), 4611686018427387904) rows with ties)
    union all
    (select o.* from presence.online o
     where _list.room is null
       and (o.room, o.member_id, o.connection_id) operator(pg_catalog.>)
           ((_presence._start(_list.after, 3))[1], (_presence._start(_list.after, 3))[2],
            (_presence._start(_list.after, 3))[3])
     order by o.room, o.member_id, o.connection_id
     fetch first case when _list.max_rows is null then 1000 else _presence._page(_list.max_rows) end rows with ties);
end;
comment on function _presence._list(text, integer, text[]) is 'presence.list, planned with each call, under the policies.';

create function presence.get(room text, member_id text default null, connection_id text default null)
    returns setof presence.online
    language sql stable parallel restricted rows 10
begin atomic
    select o.* from presence.online o
    where _presence._room(get.room) is not null and o.room operator(pg_catalog.=) _presence._room(get.room)
      -- Not coalesce: under row-level security PostgreSQL would not use the index for it.
      and o.member_id operator(pg_catalog.=)
          case when get.member_id is null then presence.user_id() else get.member_id end
      and (get.connection_id is null or o.connection_id operator(pg_catalog.=) get.connection_id)
    order by o.connection_id;
end;
comment on function presence.get(text, text, text) is
    'One member, by default the caller: all its connections, or the one with this connection_id. Errors: 22023 an '
    'invalid name.';

create function _presence._full_occupancy(room text, out members bigint, out users bigint) returns setof record
    language c stable parallel restricted rows 1 as 'MODULE_PATHNAME', 'presence_full_occupancy';
comment on function _presence._full_occupancy(text) is
    'The numbers of a room: of all members, if its count_audience lets the caller have them; else of those whom the '
    'built-in policies show the caller. No row where there are other policies.';

-- Where there are policies other than the extension's, SQL counts, by user first: that counts users by hash, while
-- count(distinct) would sort them.
create function presence.occupancy(room text default null) returns table (members bigint, users bigint)
    language sql stable parallel restricted rows 1
begin atomic
    with full_numbers as materialized (select f.members, f.users from _presence._full_occupancy(occupancy.room) f)
    select f.members, f.users from full_numbers f
    union all
    select coalesce(sum(u.members), 0)::bigint, count(*)
    from (select o.user_id, count(*) as members from presence.online o
          where _presence._room(occupancy.room) is not null and o.room operator(pg_catalog.=) occupancy.room
            and not exists (select from full_numbers)
          group by o.user_id) u
    where occupancy.room is not null
    having occupancy.room is not null and not exists (select from full_numbers)
    union all
    select coalesce(sum(u.members), 0)::bigint, count(*)
    from (select o.user_id, count(*) as members from presence.online o
          where occupancy.room is null
          group by o.user_id) u
    having occupancy.room is null;
end;
comment on function presence.occupancy(text) is
    'The number of members and users in the room (NULL: anywhere) that the caller may see. If the room''s '
    'count_audience includes the caller, everybody counts. Errors: 22023 an invalid room.';

create function _presence._rank(status text) returns integer
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_rank';
comment on function _presence._rank(text) is 'The place of a status in presence.status_rank, from 1; NULL if it is not listed.';
create function _presence._ranked(rank integer, status text) returns text
    language c stable parallel safe as 'MODULE_PATHNAME', 'presence_ranked';
comment on function _presence._ranked(integer, text) is
    'The status of that rank in presence.status_rank; where rank is NULL, the one given.';

create function presence.users(room text)
    returns table (user_id text, members bigint, status text, state jsonb, metadata jsonb, joined_at timestamptz,
                   last_seen_at timestamptz)
    language sql stable parallel restricted rows 50
begin atomic
    select u.user_id, u.members, _presence._ranked(u.rank, u.status), u.state, u.metadata, u.first_joined_at, u.last_seen_at
    from (select o.user_id, o.status, o.state, o.metadata, o.last_seen_at,
                 count(*) over all_of_user as members,
                 min(o.joined_at) over all_of_user as first_joined_at,
                 min(_presence._rank(o.status)) over all_of_user as rank,
                 row_number() over (partition by o.user_id order by o.last_seen_at desc, o.version desc) as place
          from presence.online o
          where _presence._room(users.room) is not null and o.room operator(pg_catalog.=) _presence._room(users.room)
          window all_of_user as (partition by o.user_id)) u
    where u.place operator(pg_catalog.=) 1
    order by u.user_id;
end;
comment on function presence.users(text) is
    'The room with one row for each user: the number of members, status, state and metadata of the most recently '
    'active one, the first joined_at and the last last_seen_at. If presence.status_rank lists statuses of the user''s '
    'members, the highest of these is shown. Errors: 22023 an invalid room.';

create function presence.rooms(prefix text default '', max_rows integer default 100, after text default null)
    returns table (room text, members bigint, users bigint)
    language sql stable parallel restricted rows 100
begin atomic
    select o.room, count(*), count(distinct o.user_id)
    from presence.online o
    where starts_with(o.room, coalesce(rooms.prefix, ''))
      and (rooms.after is null or o.room operator(pg_catalog.>) rooms.after)
    group by o.room
    order by o.room
    limit _presence._limit(rooms.max_rows);
end;
comment on function presence.rooms(text, integer, text) is
    'The rooms in which the caller can see somebody, with the numbers of members and users, in the order of their '
    'names. prefix is taken literally; after is the last room of the page before; max_rows is 1 to 1000. Errors: 22023 '
    'an invalid max_rows.';

create function presence.state(room text) returns jsonb
    language sql stable parallel restricted
begin atomic
    select coalesce(jsonb_object_agg(k.member_id, k.list), '{}')
    from (select o.member_id,
                 jsonb_agg(
                     case when jsonb_typeof(o.state) operator(pg_catalog.=) 'object'
                          then jsonb_build_object('presence_ref', o.version::text) operator(pg_catalog.||) o.state
                          else jsonb_build_object('presence_ref', o.version::text, 'state', o.state) end
                     order by o.connection_id) as list
          from presence.online o
          where _presence._room(state.room) is not null and o.room operator(pg_catalog.=) _presence._room(state.room)
          group by o.member_id) k;
end;
comment on function presence.state(text) is
    'The room as Supabase''s presenceState() returns it: {member_id: [{presence_ref, ...state}]}, one element for each '
    'connection; presence_ref is the version as text. A state that is not an object appears as {presence_ref, state}. '
    'Errors: 22023 an invalid room.';
