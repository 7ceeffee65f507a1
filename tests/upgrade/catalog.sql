-- Everything that the extension made, a row for each property: object, property, value.
with classes as (
    select c.*, c.oid::regclass::text as name from pg_class c where c.relnamespace in ('presence'::regnamespace, '_presence'::regnamespace)
)
-- what belongs to it
select pg_describe_object(d.classid, d.objid, d.objsubid) as object, 'belongs to the extension' as property, 'yes' as value
from pg_depend d join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
where d.deptype = 'e' and e.extname = 'presence_ext'
union all
-- functions
select 'function ' || p.oid::regprocedure::text, property, value
from pg_proc p, lateral (values
    ('definition', pg_get_functiondef(p.oid)),
    ('owner', p.proowner::regrole::text),
    ('privileges', array(select unnest(coalesce(p.proacl, acldefault('f', p.proowner)))::text order by 1)::text),
    ('comment', obj_description(p.oid, 'pg_proc'))) v (property, value)
where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and p.prokind <> 'a'
union all
-- tables, views, indexes
select 'relation ' || c.name, property, value
from classes c left join pg_class t on t.oid = c.reltoastrelid, lateral (values
    ('kind, persistence', concat(c.relkind, c.relpersistence)),
    ('row security', concat(c.relrowsecurity, ' ', c.relforcerowsecurity)),
    ('options', array(select unnest(c.reloptions) order by 1)::text),
    ('options of its toast', array(select unnest(t.reloptions) order by 1)::text),
    ('replica identity', c.relreplident::text),
    ('parents', array(select i.inhparent::regclass::text from pg_inherits i where i.inhrelid = c.oid order by i.inhseqno)::text),
    ('owner', c.relowner::regrole::text),
    ('privileges', array(select unnest(coalesce(c.relacl, acldefault('r', c.relowner)))::text order by 1)::text),
    ('definition', case c.relkind when 'v' then pg_get_viewdef(c.oid) when 'i' then pg_get_indexdef(c.oid) end),
    ('columns', (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)),
    ('comment', obj_description(c.oid, 'pg_class'))) v (property, value)
where c.relkind in ('r', 'v', 'i', 'S', 'm', 'p', 'f')
union all
select 'column ' || c.name || '.' || a.attname, property, value
from classes c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum, lateral (values
    ('type', format_type(a.atttypid, a.atttypmod)),
    ('collation', a.attcollation::regcollation::text),
    ('not null, generated, identity', concat(a.attnotnull, a.attgenerated, a.attidentity)),
    ('default', pg_get_expr(d.adbin, d.adrelid)),
    ('storage, compression', concat(a.attstorage, a.attcompression)),
    -- pg_attver, which some builds of 15 write there, is the server's own and another in each table
    ('options', array(select o from unnest(a.attoptions) o where o !~ '^pg_attver=' order by 1)::text),
    ('privileges', array(select unnest(a.attacl)::text order by 1)::text),
    ('comment', col_description(c.oid, a.attnum))) v (property, value)
where c.relkind in ('r', 'v', 'm', 'p', 'f', 'c')
union all
-- what hangs on tables
select 'constraint ' || conname || ' on ' || c.name, 'definition', pg_get_constraintdef(o.oid)
from classes c join pg_constraint o on o.conrelid = c.oid
union all
select 'trigger ' || tgname || ' on ' || c.name, property, value
from classes c join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal, lateral (values
    ('definition', pg_get_triggerdef(t.oid)),
    ('enabled', t.tgenabled::text)) v (property, value)
union all
select 'policy ' || polname || ' on ' || c.name, property, value
from classes c join pg_policy p on p.polrelid = c.oid, lateral (values
    ('command, permissive', concat(p.polcmd, p.polpermissive)),
    ('roles', array(select pg_get_userbyid(r) from unnest(p.polroles) r order by 1)::text),
    ('using', pg_get_expr(p.polqual, p.polrelid)),
    ('with check', pg_get_expr(p.polwithcheck, p.polrelid))) v (property, value)
union all
-- what dumps and doorbells go by
select 'extension', 'dumped table ' || t::regclass::text, coalesce(e.extcondition[n], '')
from pg_extension e, unnest(e.extconfig) with ordinality u (t, n) where e.extname = 'presence_ext'
union all
select pg_describe_object(i.classoid, i.objoid, i.objsubid), 'privileges that a dump takes for granted',
       array(select unnest(i.initprivs)::text order by 1)::text
from pg_init_privs i join pg_depend d on (d.classid, d.objid) = (i.classoid, i.objoid)
join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
where d.deptype = 'e' and e.extname = 'presence_ext'
union all
select 'schema ' || n.nspname, property, value
from pg_namespace n, lateral (values
    ('owner', n.nspowner::regrole::text),
    ('privileges', array(select unnest(n.nspacl)::text order by 1)::text),
    ('comment', obj_description(n.oid, 'pg_namespace'))) v (property, value)
where n.nspname in ('presence', '_presence')
order by 1, 2, 3
