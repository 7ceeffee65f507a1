-- The sink: a function of the application that gets every event, in order, exactly once.

create table _presence._sink (
    function_name text        primary key,
    position      bigint      not null,
    updated_at    timestamptz not null
);
comment on table _presence._sink is
    'How far each function that was presence.sink has come: written in the transaction that called it.';
alter table _presence._sink enable row level security;
