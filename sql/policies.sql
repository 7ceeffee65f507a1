-- Row-level security: who may read and write which rows. The owner of the extension and superusers see all.

alter table presence.member enable row level security;
alter table presence.event enable row level security;
alter table presence._event_0 enable row level security;
alter table presence._event_1 enable row level security;
alter table presence._event_2 enable row level security;
alter table presence.secret enable row level security;

create function presence._may(room text, action text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_may';
comment on function presence._may(text, text) is
    'Whether presence.authorizer lets the caller read, join or manage the room; without one everybody may read and '
    'join. Service roles may.';

create function presence._has_builtin_policies() returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_has_builtin_policies';
comment on function presence._has_builtin_policies() is
    'Whether the SELECT policies of presence.member are as the extension made them.';

-- Mine, or I act for all, or shared with me. The sub-selects are evaluated once a statement.
create policy member_read on presence.member for select using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or (audience operator(pg_catalog.&&) (select presence.tokens()) and presence._may(room, 'read'))
);
create policy member_enter on presence.member for insert with check (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
);
create policy member_change on presence.member for update using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
);
create policy member_leave on presence.member for delete using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or presence._may(room, 'manage')
);

-- The log: the same rule. A line that starts with "-" is for those who lost or gained sight, not for the owner.
-- Closed while member has policies of somebody else's making, which this one cannot know.
create policy event_read on presence.event for select using (
    (select presence.is_service() or presence._has_builtin_policies())
    and case when (select presence.is_service()) then audience[1] is distinct from '-'
             when user_id operator(pg_catalog.=) (select presence.user_id())
             then audience[1] is distinct from '-'
                  or audience operator(pg_catalog.@>) array['user:' operator(pg_catalog.||) user_id]
             else audience operator(pg_catalog.&&) (select presence.tokens()) and presence._may(room, 'read') end
);

-- What the SELECT policies of a table are, as text.
create function presence._policies(relation regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select concat_ws(' ', (select c.relrowsecurity from pg_catalog.pg_class c where c.oid = relation),
        string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles,
                             pg_catalog.pg_get_expr(p.polqual, p.polrelid)), '; ' order by p.polname))
    from pg_catalog.pg_policy p
    where p.polrelid = relation and p.polcmd in ('r', '*');
end;
comment on function presence._policies(regclass) is 'The SELECT policies of a table, as text.';

-- All that takes part in a write of a table, as text: policies, triggers, rules, foreign keys (by their triggers),
-- checks, columns, and indexes that are more than columns. NULL for a table that is not a heap.
create function presence._shape(relation regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
begin atomic
    select concat_ws(' ', c.relrowsecurity, c.relforcerowsecurity, c.relhasrules, c.relnatts, c.relchecks,
        (select string_agg(i.indexrelid::regclass::text, ' ' order by i.indexrelid::regclass::text)
         from pg_catalog.pg_index i
         where i.indrelid = relation
           and (i.indexprs is not null or i.indpred is not null or i.indisexclusion or not i.indimmediate)),
        (select string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles,
                                     pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                                     pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)), '; ' order by p.polname)
         from pg_catalog.pg_policy p where p.polrelid = relation),
        (select string_agg(concat_ws(' ', t.tgname, t.tgtype, t.tgenabled, t.tgfoid::regprocedure), '; '
                           order by t.tgname)
         from pg_catalog.pg_trigger t where t.tgrelid = relation))
    from pg_catalog.pg_class c join pg_catalog.pg_am a on a.oid = c.relam and a.amname = 'heap'
    where c.oid = relation;
end;
comment on function presence._shape(regclass) is
    'All that takes part in a write of a table, as text: policies, triggers, rules, constraints; NULL if it is no '
    'heap.';
update presence.secret set policies = presence._policies('presence.member');

create table presence._origin (shape text not null);
alter table presence._origin enable row level security;
insert into presence._origin select presence._shape('presence.member');
comment on table presence._origin is 'all that takes part in a write of member, as the extension made it';
