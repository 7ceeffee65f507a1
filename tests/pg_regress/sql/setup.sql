-- The starting point of every file: the extension, three users and a service role.
create extension presence_ext;
set client_min_messages = error;
drop role if exists regress_alice, regress_bob, regress_carol, regress_gateway, regress_nobody;
reset client_min_messages;
create role regress_alice;
create role regress_bob;
create role regress_carol;
create role regress_gateway bypassrls;
create role regress_nobody;
select presence.grant_access('regress_alice'), presence.grant_access('regress_bob'),
       presence.grant_access('regress_carol'), presence.grant_access('regress_gateway');

-- All parts of an error.
create schema test;
grant usage on schema test to public;
create function test.error(statement text, out code text, out message text, out detail text, out hint text)
    language plpgsql as $$
begin
    execute statement;
    message := 'no error';
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, detail = pg_exception_detail,
        hint = pg_exception_hint;
end
$$;

-- Waits until a condition holds, for as long as the slowest machine may need. Each turn sees what others have committed.
create function test.wait_until(condition text) returns text language plpgsql as $$
declare
    holds boolean;
begin
    for turn in 1..400 loop
        execute 'select ' || condition into holds;
        if holds then
            return 'ok';
        end if;
        perform pg_sleep(0.05);
    end loop;
    return 'waited in vain';
end
$$;

-- The events since a seq, without what differs from run to run.
create function test.log(after_seq bigint)
    returns table (event text, room text, member_id text, connection_id text, user_id text, status text, state jsonb,
                   connections integer, reason text, audience text[])
    language sql stable as $$
    select e.event, e.room, e.member_id, e.connection_id, e.user_id, e.status, e.state, e.connections, e.reason,
           e.audience
    from presence.event e where e.seq > after_seq order by e.seq
$$;

-- The worker starts by itself.
select test.wait_until('presence.worker_pid() is not null');
select presence.wait_for_flush('10 s');
