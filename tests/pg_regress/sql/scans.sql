-- What a call reads: a page, a room or a member, but never the whole table.
set role regress_gateway;
insert into presence.member (room, member_id, user_id, state)
select 'room ' || n % 50, 'user ' || n, 'user ' || n, '{}' from generate_series(1, 5000) n;
reset role;
analyze presence.member;

create function test.reads(statement text, out scans bigint, out rows_of_member bigint) language plpgsql as $$
declare
    before record;
begin
    select coalesce(sum(seq_scan), 0) s, coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) r into before
    from pg_stat_xact_user_tables where relid = 'presence.member'::regclass;
    execute statement;
    select coalesce(sum(seq_scan), 0) - before.s, coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) - before.r
    into scans, rows_of_member from pg_stat_xact_user_tables where relid = 'presence.member'::regclass;
end
$$;
-- The maximum number of rows of member that each may read, in a table of 5,000 with rooms of 100.
create table test.limits (role text, most integer, statement text);
grant select on test.limits to public;
insert into test.limits values
    ('regress_gateway', 0, $$ select presence.heartbeat('room 7', 'user 7') $$),
    ('regress_gateway', 8, $$ select * from presence.list('room 7', 3) $$),
    ('regress_gateway', 8, $$ select * from presence.list('room 7', 3, array['user 7', '']) $$),
    ('regress_gateway', 8, $$ select * from presence.list(null, 3) $$),
    ('regress_gateway', 8, $$ select * from presence.list(null, 3, array['room 7', 'user 7', '']) $$),
    ('regress_gateway', 4, $$ select * from presence.get('room 7', 'user 7') $$),
    ('regress_gateway', 4, $$ select * from presence.get('room 7', 'user 7', '') $$),
    ('regress_gateway', 200, $$ select * from presence.occupancy('room 7') $$),
    ('regress_gateway', 200, $$ select presence.state('room 7') $$),
    ('regress_gateway', 4, $$ select * from presence.online where user_id = 'user 7' $$),
    ('regress_gateway', 6, $$ select presence.upsert('room 7', '{"a": 1}', 'user 7') $$),
    ('regress_gateway', 6, $$ select presence.upsert('room 7', '{"a": 1}', 'user 7') $$),
    ('regress_gateway', 6, $$ select presence.update('room 7', '{"a": 2}', 'user 7') $$),
    ('regress_gateway', 6, $$ select presence.delete('room 7', 'user 7') $$),
    ('regress_gateway', 6, $$ select presence.upsert('room 7', '{"a": 1}', user_id => 'user 7') $$),
    ('regress_gateway', 12, $$ select presence.delete_all('user 7') $$),
    ('regress_gateway', 0, $$ select presence.sweep() $$),
    ('regress_alice', 6, $$ select presence.upsert('room 7') $$),
    ('regress_alice', 20, $$ select * from presence.list('room 7', 3) $$),
    ('regress_alice', 20, $$ select * from presence.list('room 7', 3, array['user 7', '']) $$),
    ('regress_alice', 4, $$ select * from presence.get('room 7') $$),
    ('regress_alice', 200, $$ select * from presence.occupancy('room 7') $$),
    ('regress_alice', 200, $$ select presence.state('room 7') $$),
    ('regress_alice', 6, $$ select presence.update('room 7', '{"a": 2}') $$),
    ('regress_alice', 4, $$ select presence.channels('room 7') $$),
    ('regress_alice', 6, $$ select presence.delete('room 7', connection_id => null) $$),
    ('regress_alice', 6, $$ select presence.delete_all() $$);
do $$
declare
    l record;
    r record;
begin
    for l in select * from test.limits loop
        perform set_config('role', l.role, true);
        select * into r from test.reads(l.statement);
        if r.scans > 0 or r.rows_of_member > l.most then
            raise notice '% as %: % scans of the table, % rows', l.statement, l.role, r.scans, r.rows_of_member;
        end if;
    end loop;
    perform set_config('role', 'none', true);
end
$$;
delete from presence.member;
drop function test.reads(text);
drop table test.limits;
select presence.wait_for_flush('10 s');
