-- Verbs bypass the executor only where that makes no difference: whatever others add to the table member takes effect.
\set VERBOSITY terse
set role regress_alice;
select state, version > 0 as has_version from presence.upsert('lobby', '1');
select state from presence.upsert('lobby', '2');
reset role;

-- A trigger sees every write, as the caller.
create table audit (what text, who text, state jsonb);
grant insert on audit to public;
create function audit() returns trigger language plpgsql as $$
begin
    insert into public.audit values (tg_op, current_user, new.state);
    return null;
end $$;
create trigger audit after insert or update on presence.member for each row execute function audit();
set role regress_alice;
select state from presence.upsert('lobby', '3');
select state from presence.update('lobby', '{"x": 1}');
reset role;
drop trigger audit on presence.member;
set role regress_alice;
select state from presence.upsert('lobby', '4');
reset role;
select * from audit;

-- A policy that forbids.
create policy no_fives on presence.member as restrictive for update using (true) with check (state <> '5');
set role regress_alice;
select state from presence.upsert('lobby', '5');
select state from presence.upsert('lobby', '6');
reset role;
drop policy no_fives on presence.member;
set role regress_alice;
select state from presence.upsert('lobby', '5');
reset role;

-- A constraint, too.
alter table presence.member add constraint no_sevens check (state <> '7');
set role regress_alice;
select state from presence.upsert('lobby', '7');
reset role;
alter table presence.member drop constraint no_sevens;

-- A partial index contains its rows, and no others.
create index even on presence.member (room) where state in ('2', '4', '6', '8');
set role regress_alice;
select state from presence.upsert('lobby', '8');
select state from presence.upsert('lobby', '9');
reset role;
set enable_seqscan = off;
set enable_bitmapscan = off;
select state from presence.member where room = 'lobby' and state in ('2', '4', '6', '8');
reset enable_seqscan;
reset enable_bitmapscan;
drop index presence.even;

-- Privileges on columns are not privileges on the table.
revoke update on presence.member from regress_alice;
set role regress_alice;
select state from presence.upsert('lobby', '10');
reset role;
grant update (state, status) on presence.member to regress_alice;
set role regress_alice;
update presence.member set state = '10' where room = 'lobby' returning state;
reset role;
revoke update (state, status) on presence.member from regress_alice;
grant update on presence.member to regress_alice;

-- Twice in one statement, and in a transaction that sees its own changes.
set role regress_alice;
select n, (presence.upsert('lobby', to_jsonb(n))).state from generate_series(1, 3) n;
begin;
select state from presence.upsert('lobby', '"a"');
savepoint s;
select state from presence.upsert('lobby', '"b"');
rollback to s;
select state from presence.upsert('lobby', '"c"', status => 'busy');
commit;
select state, status from presence.get('lobby');
select presence.delete('lobby');
reset role;

-- The same for the log, which the worker writes: an index on an expression is kept.
create index by_tool on _presence._event_0 ((state ->> 'tool'));
create index by_tool_1 on _presence._event_1 ((state ->> 'tool'));
create index by_tool_2 on _presence._event_2 ((state ->> 'tool'));
set role regress_alice;
select state from presence.upsert('lobby', '{"tool": "chalk"}');
select presence.delete('lobby');
reset role;
select presence.wait_for_flush('10 s');
set enable_seqscan = off;
set enable_bitmapscan = off;
select event, state from presence.event where state ->> 'tool' = 'chalk' order by seq;
reset enable_seqscan;
reset enable_bitmapscan;
drop index _presence.by_tool, _presence.by_tool_1, _presence.by_tool_2;
drop table audit;
drop function audit;
