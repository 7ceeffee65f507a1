-- The tables. The public ones are in schema presence, which CREATE EXTENSION has created, the rest in _presence.

-- For the whole script: a name without a schema is PostgreSQL's own, whatever somebody has put into schema presence
-- before. CREATE EXTENSION restores the setting.
set local search_path = pg_catalog, pg_temp;

-- The owner of the schema, or of something in it, could change that at any time and add functions next to ours.
do $$
declare
    strangers record;
begin
    select pg_describe_object(s.classid, s.objid, 0) as what, r.rolname as owner into strangers
    from pg_shdepend s join pg_roles r on r.oid = s.refobjid and s.refclassid = 'pg_authid'::regclass
    where s.deptype = 'o' and s.dbid = (select d.oid from pg_database d where d.datname = current_database())
      and not r.rolsuper and r.rolname <> current_user
      and (s.classid = 'pg_namespace'::regclass and s.objid = 'presence'::regnamespace
           or exists (select from pg_depend d
                      where d.classid = s.classid and d.objid = s.objid
                        and d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'presence'::regnamespace))
    order by s.classid <> 'pg_namespace'::regclass, s.classid, s.objid
    limit 1;
    if found then
        raise exception using errcode = '42501', message = 'schema presence is not yours alone',
            detail = format('%s belongs to %I, who is neither a superuser nor creates the extension.',
                            strangers.what, strangers.owner),
            hint = 'Drop it, or make a superuser its owner.';
    end if;
end $$;

-- The internals of the extension. Only the owner has access.
create schema _presence;
comment on schema _presence is 'internals of presence_ext; for the extension only';

-- Unlogged: presence is worthless after a crash, and a commit that touched only unlogged tables does not wait for the
-- disk. No index on a time and no foreign key, so that an update that changes no indexed column stays on its page. A
-- heap, whatever default_table_access_method says, because verbs and the worker store rows without the executor. Columns
-- that the triggers fill have a default, so that tools see that they may be left out: NULL (as an expression, because a
-- plain NULL is no default) where the triggers check whether a value was given, else a constant that they replace.
create unlogged table presence.member (
    room           text        not null,
    member_id      text        not null default nullif('', ''),
    connection_id  text        not null default '',
    user_id        text        not null default nullif('', ''),
    status         text,
    state          jsonb       not null default '{}',
    metadata       jsonb       not null default '{}',
    audience       text[]      not null default nullif('{}'::text[], '{}'),
    version        bigint      not null default '0',
    generation     bigint      not null default '0',
    joined_at      timestamptz not null default '-infinity',
    updated_at     timestamptz not null default '-infinity',
    last_seen_at   timestamptz not null default '-infinity',
    expires_at     timestamptz,
    ttl            interval,
    deadline       bigint      not null default '0',
    session        bigint,
    session_pid    integer,
    key_hash       uuid        not null default '00000000-0000-0000-0000-000000000000',
    leaves_at      timestamptz,
    last_word      jsonb,
    leave_reason   text,
    reverts        jsonb,
    primary key (room, member_id, connection_id)
) using heap with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
    vacuum_truncate = off, toast.vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 1000
);
-- Includes the room, because the worker counts a user's members in it.
create index member_user_id on presence.member (user_id, room);
create index member_key_hash on presence.member (key_hash);
-- For readers who see few of many members. An enter only appends to the pending list; every reader scans that, so it is
-- short (kB).
create index member_audience on presence.member using gin (audience) with (gin_pending_list_limit = 256);

-- Like member, with the same triggers and policies, and always empty: member is compared with it, to detect what others
-- have added.
create unlogged table _presence.member_twin (like presence.member including indexes) using heap;
alter table _presence.member_twin enable row level security;
comment on table _presence.member_twin is
    'How the extension made presence.member: verbs go past the executor only while the two are alike.';

comment on table presence.member is
    'Members as they are stored: one row for each room, member_id and connection_id. The leases of most are in '
    'shared memory, so read the view presence.online to know who is here. INSERT, UPDATE and DELETE obey the same '
    'rules and make the same events as the functions.';
comment on column presence.member.user_id is 'who owns the row: the identity that wrote it';
comment on column presence.member.audience is 'who may see the member, besides its owner: a list of tokens';
comment on column presence.member.version is 'grows with every change and never goes back';
comment on column presence.member.generation is 'the version with which this stay began';
comment on column presence.member.expires_at is
    'end of the lease as of the last write, NULL where none ends; for the current value see presence.online';
comment on column presence.member.deadline is
    'the end of the lease as of the last write, in microseconds of the boot clock; -1 is never; of a member that is '
    'leaving, in microseconds of the wall clock since 2000, negative';
comment on column presence.member.session is 'the database session that the member is bound to';
comment on column presence.member.key_hash is 'keyed hash of room, member_id and connection_id';
comment on column presence.member.leaves_at is
    'when the member leaves, unless it upserts before (presence.delete with after); heartbeats do not postpone it';
comment on column presence.member.last_word is 'what that leave shows as state; NULL is the state';
comment on column presence.member.leave_reason is 'why it leaves then; NULL is left';
comment on column presence.member.reverts is
    'what of status and state will be undone, and when; NULL is nothing';

-- The log of events. The worker writes it, in parts that take turns: a part is emptied by TRUNCATE, never by DELETE.
create unlogged table presence.event (
    seq            bigint not null,
    version        bigint,
    event          text   not null,
    room           text,
    member_id      text,
    connection_id  text,
    user_id        text,
    status         text,
    state          jsonb,
    metadata       jsonb,
    connections    integer,
    reason         text,
    at             timestamptz,
    joined_at      timestamptz,
    audience       text[],
    node           text
) using heap;
comment on table presence.event is
    'The log: every event with its seq, in order, for presence.history_retention. An audience that starts with "-" '
    'marks a line that was made for others than the owner (a leave or enter by a changed audience); a "+" in front of '
    'a token of an update, that who has it gained sight.';
comment on column presence.event.node is 'the server where it happened; NULL where presence.node_name is empty';
create unlogged table _presence._event_0 () inherits (presence.event) using heap with (autovacuum_enabled = off);
create unlogged table _presence._event_1 () inherits (presence.event) using heap with (autovacuum_enabled = off);
create unlogged table _presence._event_2 () inherits (presence.event) using heap with (autovacuum_enabled = off);
create unique index _event_0_seq on _presence._event_0 (seq);
create unique index _event_1_seq on _presence._event_1 (seq);
create unique index _event_2_seq on _presence._event_2 (seq);
create index _event_0_room on _presence._event_0 (room, seq);
create index _event_1_room on _presence._event_1 (room, seq);
create index _event_2_room on _presence._event_2 (room, seq);

-- Each logged table has a primary key: without one a publication FOR ALL TABLES makes PostgreSQL refuse UPDATE and
-- DELETE.

-- The key of all keyed hashes: of members in shared memory, and of channel names. Only the owner can read it, and a
-- dump does not contain it: a restored database has its own.
create table _presence.secret (key bytea primary key);
insert into _presence.secret (key)
select pg_catalog.decode(
    pg_catalog.replace(pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, '-', ''), 'hex');
comment on table _presence.secret is 'the key of all keyed hashes; for the extension only';
