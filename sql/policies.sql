-- Row-level security: who may read and write which rows. The owner of the extension and superusers see all.

alter table presence.member enable row level security;
alter table presence.event enable row level security;
alter table _presence._event_0 enable row level security;
alter table _presence._event_1 enable row level security;
alter table _presence._event_2 enable row level security;
alter table _presence.secret enable row level security;

create function _presence._may(room text, action text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_may';
comment on function _presence._may(text, text) is
    'Whether presence.authorizer lets the caller read, join or manage the room; without one everybody may read and '
    'join. Service roles may. What the authorizer raises fails the statement; NULL is a no.';

create function _presence._has_builtin_policies() returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_has_builtin_policies';
comment on function _presence._has_builtin_policies() is
    'Whether the SELECT policies of presence.member are as the extension made them.';

-- The caller's own, or the caller is a service role, or shared with the caller. The sub-selects are evaluated once per
-- statement. The twin has the same policies.
do $$
declare
    relation text;
begin
    foreach relation in array array['presence.member', '_presence.member_twin'] loop
        execute format($policy$
            create policy member_read on %s for select using (
                user_id operator(pg_catalog.=) (select presence.user_id())
                or (select presence.is_service())
                or (audience operator(pg_catalog.&&) (select presence.tokens()) and _presence._may(room, 'read'))
            )$policy$, relation);
        execute format($policy$
            create policy member_enter on %s for insert with check (
                user_id operator(pg_catalog.=) (select presence.user_id())
                or (select presence.is_service())
            )$policy$, relation);
        execute format($policy$
            create policy member_change on %s for update using (
                user_id operator(pg_catalog.=) (select presence.user_id())
                or (select presence.is_service())
            )$policy$, relation);
        execute format($policy$
            create policy member_leave on %s for delete using (
                user_id operator(pg_catalog.=) (select presence.user_id())
                or (select presence.is_service())
                or _presence._may(room, 'manage')
            )$policy$, relation);
    end loop;
end
$$;

-- The log: the same rule. A row whose audience starts with "-" is for those who lost or gained sight, not for the owner.
-- Closed while member has policies other than the extension's, which this policy cannot know.
create policy event_read on presence.event for select using (
    (select presence.is_service() or _presence._has_builtin_policies())
    and case when (select presence.is_service()) then audience[1] is distinct from '-'
             when user_id operator(pg_catalog.=) (select presence.user_id())
             then audience[1] is distinct from '-'
                  or audience operator(pg_catalog.@>) array['user:' operator(pg_catalog.||) user_id]
             else audience operator(pg_catalog.&&) (select presence.tokens()) and _presence._may(room, 'read') end
);
