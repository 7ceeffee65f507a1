-- Several servers: whether they hear each other, and what is wrong with their configuration.

create function _presence._peer(node text, out heard interval, out has_conflict boolean, out members bigint) returns setof record
    language c stable parallel restricted rows 1 as 'MODULE_PATHNAME', 'presence_peer';
comment on function _presence._peer(text) is
    'How long ago this server has seen a beat of that one, NULL if not since it started; whether two servers have its name; and '
    'how many members this server has of it.';

create function _presence._cluster_problems() returns setof text
    language sql stable parallel restricted rows 10
    set search_path = pg_catalog, pg_temp
begin atomic
    with ours as (
        select c.oid, format('presence.%s', c.relname) as name from pg_class c
        where c.oid in ('presence.shared'::regclass, 'presence.node'::regclass)
    ), publications as (
        select p.oid, p.pubname, p.pubtruncate, p.pubinsert and p.pubupdate and p.pubdelete as sends_all, p.puballtables,
               ours.name, r.prqual, pg_get_expr(r.prqual, r.prrelid) as condition
        from pg_publication p cross join ours
        left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = ours.oid
        where p.puballtables or r.oid is not null
    ), subscriptions as (
        select s.oid, s.subname, s.subenabled, s.substream, s.subowner, ours.name, r.srsubstate
        from pg_subscription s join pg_subscription_rel r on r.srsubid = s.oid join ours on ours.oid = r.srrelid
        where s.subdbid = (select d.oid from pg_database d where d.datname = current_database())
    ), slots as (
        select s.slot_name, s.active, s.wal_status, s.restart_lsn from pg_replication_slots s
        where s.slot_type = 'logical' and s.database = current_database()
          and exists (select from publications)
    )
    select 'this server has no name: set presence.node_name and restart it'
    where _presence._node_name() is null
    union all
    select format('wal_level is %s, so nothing is sent to other servers: set it to logical and restart', current_setting('wal_level'))
    where current_setting('wal_level') <> 'logical'
    union all
    select format('%s is in no publication: nobody can follow this server', o.name) from ours o
    where not exists (select from publications p where p.name = o.name)
    union all
    select distinct format('publication %I sends TRUNCATE, which empties the table everywhere: alter publication %I set (publish = ''insert, update, delete'')',
                  p.pubname, p.pubname)
    from publications p where p.pubtruncate
    union all
    select distinct format('publication %I does not send all changes: alter publication %I set (publish = ''insert, update, delete'')',
                  p.pubname, p.pubname)
    from publications p where not p.sends_all
    union all
    select format('publication %I sends %s of all servers: it should have the condition node = %L', p.pubname, p.name,
                  _presence._node_name())
    from publications p where p.condition is null
    union all
    select format('publication %I sends %s where %s, and this server is called %s', p.pubname, p.name, p.condition,
                  coalesce(quote_literal(_presence._node_name()), 'nothing'))
    from publications p
    where p.condition is distinct from format('(node = %L::text)', _presence._node_name()) and p.condition is not null
    union all
    select 'no subscription brings presence.shared: this server follows nobody' where not exists (select from subscriptions)
    union all
    select format('subscription %I does not bring %s: both tables belong into the publication', s.subname, o.name)
    from (select distinct subname from subscriptions) s cross join ours o
    where not exists (select from subscriptions other where other.subname = s.subname and other.name = o.name)
    union all
    select distinct format('subscription %I is disabled: alter subscription %I enable', s.subname, s.subname)
    from subscriptions s where not s.subenabled
    union all
    select distinct format('subscription %I has no process: the server''s log says why it cannot connect or apply', s.subname)
    from subscriptions s
    where s.subenabled and not pg_is_in_recovery()
      and not exists (select from pg_stat_get_subscription(s.oid) a where a.relid is null and a.pid is not null)
    union all
    select format('subscription %I is copying %s', s.subname, s.name) from subscriptions s where s.srsubstate <> 'r'
    union all
    select distinct format('subscription %I waits for large transactions of others: alter subscription %I set (streaming = on)',
                  s.subname, s.subname)
    from subscriptions s where s.substream::text in ('f', 'false')
    union all
    select distinct format('subscription %I belongs to %s, who may not write under row-level security: it needs BYPASSRLS, or to own '
                  'the extension', s.subname, r.rolname)
    from subscriptions s join pg_roles r on r.oid = s.subowner
    join pg_class c on c.oid = 'presence.shared'::regclass
    where not r.rolsuper and not r.rolbypassrls and not pg_has_role(r.oid, c.relowner, 'usage')
    union all
    select format('slot %I is lost: its server has to subscribe anew', s.slot_name) from slots s where s.wal_status = 'lost'
    union all
    select format('nobody reads slot %I, for which %s of WAL are kept: bring its server back, or drop the slot', s.slot_name,
                  pg_size_pretty(pg_wal_lsn_diff(case when not pg_is_in_recovery() then pg_current_wal_lsn() end, s.restart_lsn)))
    from slots s where not s.active and s.wal_status <> 'lost'
    union all
    select 'max_slot_wal_keep_size is unlimited: a server that is away for long fills the disk of this one'
    where exists (select from slots) and current_setting('max_slot_wal_keep_size') = '-1'
    union all
    select format('wal_retrieve_retry_interval is %s: for so long a server that was restarted is not followed',
                  current_setting('wal_retrieve_retry_interval'))
    where exists (select from subscriptions) and current_setting('wal_retrieve_retry_interval')::interval > '2 s'
    union all
    select format('another server has the name %s, too', quote_literal(_presence._node_name()))
    from _presence._peer(_presence._node_name()) p where p.has_conflict;
end;
comment on function _presence._cluster_problems() is 'What presence.cluster() says of this server.';

create function _presence._is_copying() returns boolean
    language sql stable parallel restricted
    set search_path = pg_catalog, pg_temp
return exists (select from pg_subscription s join pg_subscription_rel r on r.srsubid = s.oid
               where s.subenabled and r.srsubstate <> 'r' and r.srrelid in ('presence.shared'::regclass, 'presence.node'::regclass));
comment on function _presence._is_copying() is 'Whether a subscription still copies what another server has.';

create function presence.cluster()
    returns table (node text, state text, beat_age interval, members bigint, library text, problems text[])
    language sql stable parallel restricted rows 10
    set search_path = pg_catalog, pg_temp
begin atomic
    select n.node,
           case when n.node = _presence._node_name() then n.state
                when p.has_conflict then 'conflict'
                when n.state = 'down' then 'down'
                when _presence._is_heard(n.node) then n.state
                when p.heard is null and _presence._is_copying() then 'copying'
                else 'silent' end,
           p.heard,
           p.members,
           n.library,
           case when n.node = _presence._node_name()
                then array(select _presence._cluster_problems())
                else array(select format('two servers have the name %L', n.node) where p.has_conflict
                           union all
                           select case when p.heard is null then 'nothing was heard of it since this server started'
                                       else format('nothing was heard of it for %s s', round(extract(epoch from p.heard))) end
                           where n.state <> 'down' and not _presence._is_heard(n.node))
           end
    from presence.node n cross join lateral _presence._peer(n.node) p
    union all
    select _presence._node_name(), 'off', null, 0, null, array(select _presence._cluster_problems())
    where not exists (select from presence.node n where n.node = _presence._node_name())
    order by 1 nulls first;
end;
comment on function presence.cluster() is
    'The servers that are known here. state is up, restoring, down (it has stopped), copying (its data is being copied '
    'for the first time, or again), silent (not heard for presence.node_timeout; its members are hidden, as with '
    'copying) or conflict (two servers have the name). beat_age: how long ago it was heard. members: how many of its '
    'members this server has. library: the version of its library. problems: what is wrong, and for this server what '
    'is missing in its own set-up. For members of pg_monitor and the owner (42501).';

create function presence.forget_node(node text) returns bigint
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_forget_node';
comment on function presence.forget_node(text) is
    'Delete what is stored here of a server that is gone for good, after its subscription was dropped. Returns how '
    'many members that were. For service roles. Errors: 22023 for this server and for one that is still heard; 42501 '
    'not a service role.';

-- A server that subscribes to all tables of another is sent these, too, but each server has its own.
create function _presence._stays_here() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_stays_here';
comment on function _presence._stays_here() is 'Leaves out what a subscription brings.';
create trigger presence_stays before insert or update or delete on _presence.secret
    for each row execute function _presence._stays_here();
create trigger presence_stays before insert or update or delete on _presence._last_seen
    for each row execute function _presence._stays_here();
create trigger presence_stays before insert or update or delete on _presence._sink
    for each row execute function _presence._stays_here();
alter table _presence.secret enable replica trigger presence_stays;
alter table _presence._last_seen enable replica trigger presence_stays;
alter table _presence._sink enable replica trigger presence_stays;
