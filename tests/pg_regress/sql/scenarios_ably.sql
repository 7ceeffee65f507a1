-- Ably presence (AB). A channel is a room, clientId the member_id, connectionId the connection_id, data the state. The
-- numbers are those of the scenario lists; scenarios of the client library alone are in NOT_APPLICABLE.md.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
-- What a client holds after applying events as documented: the newest version of each key, in whatever order they come.
create function test.fold(events presence.event[]) returns text language plpgsql as $$
declare
    e presence.event;
    held jsonb := '{}';
    key text;
begin
    foreach e in array coalesce(events, '{}') loop
        key := e.member_id || '/' || e.connection_id;
        if coalesce((held -> key ->> 'version')::bigint, 0) < e.version then
            held := held || jsonb_build_object(key, jsonb_build_object('version', e.version, 'state', case when e.event <> 'leave' then e.state end));
        end if;
    end loop;
    return (select string_agg(k || ' ' || (v ->> 'state'), ', ' order by k) from jsonb_each(held) h (k, v) where v ->> 'state' is not null);
end
$$;
set role regress_alice;

-- AB-01: the key is clientId and connectionId: one client on two connections is two members.
select (presence.upsert('chat', '"1"', connection_id => 'c1', audience => '{any}')).connection_id;
select (presence.upsert('chat', '"2"', connection_id => 'c2', audience => '{any}')).connection_id;
select member_id, connection_id, state from presence.list('chat');
select presence.delete('chat', connection_id => null);

-- AB-02: entered or updated, in the set all are present; the events say which it was.
select test.flushed() as before \gset
select (presence.upsert('chat', '"entered"', connection_id => 'e', audience => '{any}')).state;
select (presence.upsert('chat', '"u1"', connection_id => 'u', audience => '{any}')).state;
select test.flushed() is not null as published \gset
select (presence.upsert('chat', '"u2"', connection_id => 'u')).state;
select test.flushed() is not null as published \gset
select connection_id, state from presence.list('chat');
select event, connection_id, state from test.log(:before);

-- AB-03: newest wins: in whatever order and however often the events arrive, the final set is the same.
select presence.delete('chat', connection_id => 'e');
select test.flushed() is not null as published \gset
select (presence.upsert('chat', '"again"', connection_id => 'e', audience => '{any}')).state;
select test.flushed() is not null as published \gset
select count(distinct held) as ways_to_end, min(held) as held from (
    select test.fold(array_agg(e order by e.seq)) as held from presence.event e where seq > :before
    union all select test.fold(array_agg(e order by e.seq desc)) from presence.event e where seq > :before
    union all select test.fold(array_agg(e order by md5(e.seq::text || n))) from presence.event e, generate_series(1, 20) n where seq > :before group by n
    union all select test.fold(array_agg(e order by md5(e.seq::text || n))) from presence.event e, generate_series(1, 3) n where seq > :before) f;
-- a synthesized leave (an expiry) is newer than what it ends, though it happened at the end of the lease
select (presence.upsert('chat', '"short"', connection_id => 's', ttl => '1 s', audience => '{any}')).state;
select test.wait_until(format($$ exists (select from presence.event where seq > %s and reason = 'expired') $$, :before));
select l.version > e.version as newer, l.seq > e.seq as later, l.at >= e.at + interval '1 s' as at_its_end
from presence.event e, presence.event l where e.connection_id = 's' and l.connection_id = 's' and e.event = 'enter' and l.event = 'leave' and e.seq > :before;

-- AB-04: the leave of an absent member has no effect; a leave that is older than what is held changes nothing.
select test.flushed() as now \gset
select presence.delete('chat', connection_id => 'never');
select test.flushed() = :now as nothing;
select test.fold(array_agg(e order by e.event)) from presence.event e where seq > :before and connection_id = 'e';
select presence.delete_all();

-- AB-10: without a clientId a client cannot enter, nor as "*" or as another client.
reset role;
create role regress_anon;
select presence.grant_access('regress_anon');
set presence.anonymous_roles = 'regress_anon';
set role regress_anon;
select e.* from test.error($$ select presence.upsert('chat') $$) e \gx
reset role;
reset presence.anonymous_roles;
select presence.revoke_access('regress_anon');
drop role regress_anon;
set role regress_alice;
select e.code, e.message from test.error($$ select presence.upsert('chat', member_id => '*') $$) e;

-- AB-12: data of any kind arrives as it was sent.
select test.flushed() as before \gset
select count(presence.upsert('data', d, connection_id => n::text, audience => '{any}'))
from unnest(array['null', '"string"', '""', '{"a": {"b": []}}', '[1, "x", null]', '12.50', 'true', '"\u00e9\ud83d\ude00\\\"\n"']::jsonb[]) with ordinality u (d, n);
select count(presence.upsert('data', connection_id => 'none', audience => '{any}'));
select test.flushed() is not null as published \gset
set role regress_bob;
select connection_id, state, metadata from presence.list('data');
select count(*), bool_and(e.state = o.state) as the_same from presence.event e join presence.online o using (room, member_id, connection_id) where e.seq > :before;
set role regress_alice;
select presence.delete_all();

-- AB-13: enter, update, leave: another client sees them in order, and the resulting set after each.
select test.flushed() as before \gset
select (presence.upsert('chat', '"data"', audience => '{any}')).state;
select test.flushed() is not null as published \gset
set role regress_bob;
select state from presence.get('chat', 'regress_alice');
set role regress_alice;
select (presence.upsert('chat', '"new"')).state;
select test.flushed() is not null as published \gset
set role regress_bob;
select state from presence.get('chat', 'regress_alice');
set role regress_alice;
-- AB-14: a leave without data carries the last known data, one with data carries that.
select presence.delete('chat');
select test.flushed() is not null as published \gset
set role regress_bob;
select count(*) from presence.list('chat');
select event, state, reason from test.log(:before);
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('chat', '"data"', audience => '{any}')).state;
select presence.delete('chat', state => '"bye"');
select test.flushed() is not null as published \gset
select event, state, reason from test.log(:before);

-- AB-15: update when not entered enters there. Here it does not (a late update must not create a ghost), but upsert does.
-- leave when not entered succeeds.
select test.flushed() as before \gset
select count(*) from presence.update('chat', '{"x": 1}');
select presence.delete('chat');
select test.flushed() = :before as nothing;
select state from presence.upsert('chat', '{"x": 1}');
select presence.delete('chat');

-- AB-16: one connection enters 250 clients: another sees all, each once.
set role regress_gateway;
select test.flushed() as before \gset
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'crowd', 'user_id', 'client' || n, 'connection_id', 'gateway', 'state', n, 'audience', '["any"]'::jsonb)) from generate_series(1, 250) n));
select test.flushed() is not null as published \gset
set role regress_bob;
select count(*), count(distinct member_id), sum(state::integer) from presence.list('crowd', 1000);
select event, count(*), count(distinct member_id), sum(state::integer), min(connections), max(connections) from test.log(:before) group by 1;

-- AB-32: pages of at most 10000, no member twice; no rows if nobody is there; filters combine.
select count(*) from presence.list('crowd', 100);
select member_id as m, connection_id as c from presence.list('crowd', 100) order by member_id desc limit 1 \gset
select count(*), bool_and(member_id > :'m') as after_it from presence.list('crowd', 100, array[:'m', :'c']);
select count(*) from presence.list('crowd', 1000, array[:'m', :'c']);
select e.code, e.message, e.detail from test.error($$ select presence.list('crowd', 10001) $$) e;
select count(*) from presence.list('empty');
select count(*) from presence.get('crowd', 'client7', 'gateway');
select count(*) from presence.get('crowd', 'client7', 'other');
set role regress_gateway;
select presence.delete_many((select jsonb_agg(jsonb_build_object('room', 'crowd', 'member_id', 'client' || n, 'connection_id', 'gateway')) from generate_series(1, 250) n));

-- AB-17: a clientId that this connection may not use: an error, and the caller's own membership is unchanged.
set role regress_alice;
select (presence.upsert('chat', '"mine"', audience => '{any}')).state;
select test.flushed() as before \gset
select e.code, e.message from test.error($$ select presence.upsert('chat', '"not mine"', member_id => 'other') $$) e;
select member_id, state from presence.list('chat');
select test.flushed() = :before as nothing;

-- AB-18: the second client finds the first in the set, not as an enter.
set role regress_bob;
select presence.seq() as joined \gset
select member_id, state from presence.list('chat');
select event from presence.changes(:joined);

-- AB-19: two clients see each other; filters return the matching part.
select (presence.upsert('chat', '"bob"', audience => '{any}')).state;
select (presence.upsert('chat', '"bob 2"', connection_id => '2', audience => '{any}')).state;
set role regress_alice;
select member_id, connection_id, state from presence.list('chat');
select connection_id, state from presence.get('chat', 'regress_bob');
select connection_id, state from presence.get('chat', 'regress_bob', '2');
select member_id from presence.online where room = 'chat' and connection_id = '' order by 1;
select presence.delete_all();
set role regress_bob;
select presence.delete_all();

-- AB-20: 15 updates are 15 events in order. If they come faster than the worker publishes, they are conflated into the
-- last one.
set role regress_alice;
select (presence.upsert('fast', '0', audience => '{any}')).state;
select test.flushed() as before \gset
do $$
begin
    for n in 1..15 loop
        perform presence.upsert('fast', to_jsonb(n));
        commit;
        perform test.flushed();
        commit;
    end loop;
end
$$;
select string_agg(event || ' ' || state, ', ' order by seq) from presence.event where seq > :before;
select test.flushed() as before \gset
do $$
begin
    for n in 16..30 loop
        perform presence.upsert('fast', to_jsonb(n));
        commit;
    end loop;
end
$$;
select test.flushed() is not null as published \gset
select count(*) between 1 and 15 as some, bool_and(event = 'update') as updates, array_agg(state order by seq) = array_agg(state order by state::integer) as in_order, max(state::integer) as last
from presence.event where seq > :before;
select presence.delete_all();

-- AB-21: entered again after everything was lost: the same client with the same data on the same connection is the same
-- key; on another connection the old one is still there until its lease ends or it leaves.
select test.flushed() as before \gset
select (presence.upsert('again', '"data"', connection_id => 'c1')).state;
select (presence.upsert('again', '"data"', connection_id => 'c1')).state;
select (presence.upsert('again', '"data"', connection_id => 'c2')).state;
select presence.delete('again', connection_id => 'c1');
select test.flushed() is not null as published \gset
select event, connection_id, connections from test.log(:before);
select presence.delete_all();

-- AB-30: subscribe to some actions only.
select test.flushed() as before \gset
select (presence.upsert('sub', '1', audience => '{any}')).state;
select test.flushed() is not null as published \gset
select (presence.upsert('sub', '2')).state;
select presence.delete('sub');
select test.flushed() is not null as published \gset
select event, state from presence.changes(:before, 'sub') where event <> 'position';
select event, state from presence.changes(:before, 'sub') where event = 'enter';
select event, state from presence.changes(:before, 'sub') where event = any(array['enter', 'leave']);
select count(*) as subscribed from presence.listen('sub') \gset
select count(*) = :subscribed as listening from pg_listening_channels();
select presence.unlisten('sub');
select :subscribed - count(*) as closed from pg_listening_channels();
select presence.unlisten('sub');
select c from presence.channels('sub') c intersect select c from pg_listening_channels() c except select presence.channels('other');
unlisten *;

-- AB-31: get is complete by itself, there is no sync to wait for: what is committed is there.
begin;
select (presence.upsert('sync')).room;
select count(*) from presence.list('sync');
rollback;
select count(*) from presence.list('sync');

-- AB-33: history: backwards by default, in a range of times, with a limit, and the next page.
select test.flushed() as before \gset
select (presence.upsert('hist', '1', audience => '{any}')).state;
select test.flushed() is not null as published \gset
select (presence.upsert('hist', '2')).state;
select test.flushed() is not null as published \gset
select (presence.upsert('hist', '3')).state;
select presence.delete('hist');
select test.flushed() is not null as published \gset
set role regress_bob;
select event, state from presence.history('hist');
select event, state from presence.history('hist', direction => 'forwards');
select event, state from presence.history('hist', max_rows => 2);
select min(seq) as place from presence.history('hist', max_rows => 2) \gset
select event, state from presence.history('hist', max_rows => 2, before_seq => :place);
select at as start from presence.event where seq > :before and room = 'hist' and state = '2' \gset
select at as finish from presence.event where seq > :before and room = 'hist' and event = 'leave' \gset
select event, state from presence.history('hist', since => :'start', until => :'finish', direction => 'forwards');

-- AB-34: several channels at once: each with its members, or with none.
set role regress_alice;
select (presence.upsert('b1', '1', audience => '{any}')).room, (presence.upsert('b3', '3', audience => '{}')).room;
reset role;
create function test.authorize(room text, action text) returns boolean language sql stable as $$ select room <> 'b2' or action = 'join' $$;
set role regress_alice;
select (presence.upsert('b2', '2', audience => '{any}')).room;
reset role;
set presence.authorizer = 'test.authorize';
set role regress_bob;
select c.room, e.code as may_not_listen, (select coalesce(json_agg(l.member_id order by l.member_id), '[]') from presence.list(c.room) l) as members
from unnest(array['b1', 'b2', 'b3', 'b4']) c (room) left join test.error(format('select presence.channels(%L)', c.room)) e on true;
-- AB-35: there are two rights: with the right to enter but not to read, a client is present and sees nobody else; with the
-- right to read it need not enter.
select state from presence.upsert('b2', '"blind"', audience => '{any}');
select member_id from presence.list('b2');
reset role;
create or replace function test.authorize(room text, action text) returns boolean language sql stable as $$ select action = 'read' $$;
set role regress_bob;
select member_id from presence.list('b1');
select e.code, e.message from test.error($$ select presence.upsert('b1') $$) e;
reset role;
reset presence.authorizer;
select presence.delete_all('regress_alice') > 0 as left, presence.delete_all('regress_bob') > 0 as left;

-- AB-41: occupancy without identities.
set role regress_alice;
select (presence.upsert('show', connection_id => c)).connection_id from unnest(array['1', '2']) c;
reset role;
select room, count_audience from presence.set_room('show', count_audience => '{any}');
set role regress_bob;
select * from presence.occupancy('show');
select count(*) from presence.list('show');
reset role;
select presence.delete_room('show');

select count(*) from presence.member;
drop function test.flushed(), test.fold(presence.event[]), test.authorize(text, text);
