-- WordPress presence-api (WP): a table in MySQL. A room is a room, client_id the connection_id, data the state.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set role regress_alice;

-- WP-01: set, then get: one entry, with its data.
select (presence.upsert('admin/posts', '{"screen": "edit", "post": 7}', connection_id => 'client')).room;
select connection_id, state, state ->> 'screen' as screen from presence.get('admin/posts');
-- WP-02: set twice: one row, the second data.
select (presence.upsert('admin/posts', '{"screen": "list"}', connection_id => 'client')).room;
select connection_id, state from presence.get('admin/posts');
-- WP-03: rooms do not see each other.
select (presence.upsert('admin/pages', '{"screen": "other"}', connection_id => 'client')).room;
select room, state from presence.list('admin/posts');
select room, state from presence.list('admin/pages');

-- WP-04: older than its ttl is invisible before it is cleaned up; a ttl of its own counts. (A lock keeps the cleaner away.)
reset role;
begin;
insert into presence.member (room, user_id, member_id, ttl) values ('ttl', 'short', 'short', '1 s'), ('ttl', 'long', 'long', '10 min');
commit;
begin;
select member_id from presence.member where room = 'ttl' order by 1 for update;
select pg_sleep(1.05) is not null as past;
select member_id from presence.member where room = 'ttl' order by 1;
select member_id from presence.list('ttl');
-- WP-05: the cleanup takes the expired, and only those; a second one finds nothing.
select presence.sweep();
select presence.sweep();
select member_id from presence.member where room = 'ttl' order by 1;
commit;
select presence.delete_all('long');

-- WP-06: removed is gone; removing what is not there is fine.
set role regress_alice;
select presence.delete('admin/pages', connection_id => 'client'), presence.delete('admin/pages', connection_id => 'client');
select count(*) from presence.get('admin/pages');

-- WP-07: remove a user from all rooms, as a sign-out does; also for another, when nobody is signed in.
select count(presence.upsert(r, connection_id => 'client')) from unnest(array['a', 'b', 'c']) r;
select presence.delete_all();
select count(*) from presence.online where user_id = 'regress_alice';
reset role;
select count(presence.upsert(r, user_id => u)) from unnest(array['a', 'b']) r, unnest(array['u1', 'u2']) u;
select presence.delete_all('u1');
select room, user_id from presence.online order by 1, 2;
select presence.delete_all('u2');

-- WP-08: rooms by prefix, which is literal; without the expired; none is none.
select count(presence.upsert(r, user_id => 'u1')) from unnest(array['post/1', 'post/2', 'post%', 'page/1', 'pos']) r;
select (presence.upsert('post/3', user_id => 'u2', ttl => '1 s')).room;
select pg_sleep(1.05) is not null as past;
select * from presence.rooms('post/');
select * from presence.rooms('post%');
select * from presence.rooms('none');
-- WP-09: a summary: entries, users, and both by prefix; nobody is zero.
select count(presence.upsert(r, user_id => 'u2', connection_id => '2')) from unnest(array['post/1', 'page/1']) r;
select * from presence.occupancy();
select split_part(room, '/', 1) collate "C" as prefix, count(*) as entries, count(distinct user_id) as users from presence.online group by 1 order by 1;
-- WP-10: active rooms by number of entries, with users; only rooms that one may see.
select room, members, users from presence.rooms() order by members desc, room;
set role regress_bob;
select count(*) from presence.rooms();
select * from presence.occupancy();
select (presence.upsert('post/1')).room;
select room, members, users from presence.rooms();
select presence.delete_all();
reset role;
select count(presence.delete_all(u)) from unnest(array['u1', 'u2']) u;
select * from presence.occupancy();

-- WP-11: with another's client_id one is another member, and cannot touch that one's; deleting others' is refused; a
-- service may, and one's own of course.
set role regress_alice;
select (presence.upsert('edit', '{"lock": 1}', connection_id => 'client1', audience => '{any}')).room;
set role regress_bob;
select member_id, connection_id from presence.upsert('edit', '{"lock": 2}', connection_id => 'client1', audience => '{any}');
select e.code, e.message from test.error($$ select presence.delete('edit', 'regress_alice', 'client1') $$) e;
select presence.delete('edit', connection_id => 'client1') as own;
set role regress_gateway;
select presence.delete('edit', 'regress_alice', 'client1') as by_service;

-- WP-12: a limit of entries for each user: one more is refused, renewing and changing at the limit works.
reset role;
set presence.max_per_user = 3;
set role regress_alice;
select count(presence.upsert('room' || n)) from generate_series(1, 3) n;
select e.code, e.message, e.detail from test.error($$ select presence.upsert('room4') $$) e;
select state, presence.heartbeat('room3') from presence.upsert('room3', '{"n": 3}');
select presence.delete('room1');
select (presence.upsert('room4')).room;
select room from presence.list();
select presence.delete_all();
reset role;
reset presence.max_per_user;

-- WP-13: nesting and types are kept, depth is limited by size alone; markup and white space stay.
set role regress_alice;
select state from presence.upsert('data', '{"i": 1, "f": 1.0, "b": true, "n": null, "l": [1, [2, [3, [4, [5]]]]], "markup": "<b onclick=\"x\">  y </b>\t\n", "": {}}');
select state ->> 'markup' = e'<b onclick="x">  y </b>\t\n' as same, pg_typeof(state), jsonb_typeof(state -> 'f') as f, state -> 'f' as value from presence.get('data');
select (presence.upsert('deep', (repeat('[', 1000) || repeat(']', 1000))::jsonb)).state = (repeat('[', 1000) || repeat(']', 1000))::jsonb as kept;
select e.code, e.message from test.error($$ select presence.upsert('deep', ('"' || repeat('x', 70000) || '"')::jsonb) $$) e;

-- WP-14: an empty room is refused, and nothing is cut off silently.
select e.code, e.message, e.detail from unnest(array['', repeat('x', 256)]) r, test.error(format('select presence.upsert(%L)', r)) e;
select length((presence.upsert(repeat('x', 255))).room);
select presence.delete_all();

-- WP-15: whose user is not known any more is listed all the same: user_id is a text.
reset role;
select member_id, user_id from presence.upsert('list', user_id => 'deleted-user');
select user_id, members from presence.users('list');
select presence.delete_all('deleted-user');

-- WP-16: a removal that removes nothing and a renewal are no news; the future is not the client's to choose.
set role regress_alice;
select (presence.upsert('quiet')).room;
select test.flushed() as before \gset
select presence.heartbeat('quiet'), presence.delete('quiet', connection_id => 'none');
select (presence.upsert('quiet', ttl => '1 h')).ttl;
update presence.member set last_seen_at = '2100-01-01', expires_at = '2100-01-01' where room = 'quiet' returning last_seen_at < '2100-01-01' as clamped;
select test.flushed() = :before as nothing;
select presence.delete_all();

reset role;
select count(*) from presence.member;
drop function test.flushed();
