-- Row-level security: who may read and write which rows. The owner of the extension and superusers see all.

alter table presence.member enable row level security;
alter table presence.event enable row level security;
alter table presence._event_0 enable row level security;
alter table presence._event_1 enable row level security;
alter table presence._event_2 enable row level security;
alter table presence.secret enable row level security;

-- Mine, or shared with me, or I act for all. The sub-selects are evaluated once a statement.
create policy member_read on presence.member for select using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or audience operator(pg_catalog.&&) (select presence.tokens())
    or (select presence.is_service())
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
);

-- The log: the same rule. A line that starts with "-" is for those who lost or gained sight, not for the owner.
create policy event_read on presence.event for select using (
    (audience[1] is distinct from '-'
        and (user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())))
    or (audience operator(pg_catalog.&&) (select presence.tokens())
        and user_id is distinct from (select presence.user_id())
        and not (select presence.is_service()))
);
