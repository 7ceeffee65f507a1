-- What the catalog says: comments, descriptions, storage, volatility.
select p.oid::regprocedure as without_comment from pg_proc p
where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and coalesce(obj_description(p.oid, 'pg_proc'), '') = '' order by 1;
select c.oid::regclass as without_comment from pg_class c
where c.relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and c.relkind in ('r', 'v') and c.relname !~ '^_event' and coalesce(obj_description(c.oid, 'pg_class'), '') = '' order by 1;
select a.attrelid::regclass as of_people, a.attname as without_comment from pg_attribute a join pg_class c on c.oid = a.attrelid
where c.relnamespace = 'presence'::regnamespace and c.relkind in ('r', 'v') and a.attnum > 0 and not a.attisdropped
  and coalesce(col_description(a.attrelid, a.attnum), '') = '' order by 1, 2;

-- Columns that an INSERT must set: tools go by the defaults.
select a.attrelid::regclass as into_table, a.attname as must_be_given from pg_attribute a
where a.attrelid in ('presence.member'::regclass, 'presence.room'::regclass) and a.attnum > 0 and not a.attisdropped and a.attnotnull and not a.atthasdef;

-- Each function exists once in its schema: there are no overloads, and no argument name is a reserved word.
select proname from pg_proc where pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) group by pronamespace, 1 having count(*) > 1;
select p.oid::regprocedure, a from pg_proc p, unnest(p.proargnames) a join pg_get_keywords() k on k.word = a
where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and k.catcode = 'R';
select p.oid::regprocedure as security_definer from pg_proc p where pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and prosecdef;

-- Each function returns something, because some drivers cannot read void.
select p.oid::regprocedure as returns_nothing from pg_proc p where p.pronamespace = 'presence'::regnamespace and p.prorettype = 'void'::regtype;

-- Functions that only read are stable.
select p.proname, p.provolatile from pg_proc p where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and p.provolatile <> 's'
    and p.proname = any('{user_id,tokens,is_service,may,list,get,users,occupancy,rooms,state,history,get_room,seq,changes,worker_pid}');

-- Settings: each has a one-line description, and those that concern security are for superusers.
select name from pg_settings where name like 'presence.%' and (coalesce(short_desc, '') = '' or short_desc ~ '\n' or short_desc !~ '\.$');
select name, context, unit, boot_val from pg_settings where name like 'presence.%' and name !~ 'stall' order by 1;

-- The public schema contains no internals. These are in a schema that only the owner can use.
select relname, relkind from pg_class where relnamespace = 'presence'::regnamespace and relkind <> 'i' order by 1;
select proname from pg_proc where pronamespace = 'presence'::regnamespace order by 1;
select nspname, nspacl from pg_namespace where nspname = '_presence';

-- How members are stored.
select relpersistence, relrowsecurity, relforcerowsecurity, array(select unnest(reloptions) order by 1) as options from pg_class where oid = 'presence.member'::regclass;
select array(select unnest(t.reloptions) order by 1) as toast from pg_class c join pg_class t on t.oid = c.reltoastrelid where c.oid = 'presence.member'::regclass;
select pg_get_indexdef(indexrelid) from pg_index where indrelid = 'presence.member'::regclass order by 1;
select conname, contype from pg_constraint where conrelid = 'presence.member'::regclass and contype <> 'n' order by 1;
select tgname, tgenabled from pg_trigger where tgrelid = 'presence.member'::regclass order by 1;
select relname from pg_class where relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and relkind = 'r' and not relrowsecurity;
select relname from pg_class where relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and relkind = 'r' and relpersistence = 'u' order by 1;

-- The slots cost at most 104 bytes per member.
select sum(s.allocated_size) filter (where s.name ~ 'lease') / current_setting('presence.max_members')::bigint <= 104 as small
from pg_shmem_allocations s where s.name ilike '%presence%';

-- Row type of online: new columns only at the end.
select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) from pg_attribute where attrelid = 'presence.online'::regclass and attnum between 1 and 16;
select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) from pg_attribute where attrelid = 'presence.event'::regclass and attnum between 1 and 16;

-- All objects belong to the extension, which is in its own schema and not relocatable.
select extrelocatable, extnamespace::regnamespace from pg_extension where extname = 'presence_ext';
select c.oid::regclass from pg_class c where relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and relkind in ('r', 'v')
    and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e');

-- health has one row.
select count(*), bool_and(library_version = extension_version) as same_version, bool_and(worker_state = 'running') as running,
       bool_and(slots_max = current_setting('presence.max_members')::bigint) as slots_max,
       bool_and(events_dropped = 0 and resyncs = 0 and last_error is null) as well
from presence.health;
select application_name is not null and backend_type like '%presence%' as shown from pg_stat_activity where pid = presence.worker_pid();
