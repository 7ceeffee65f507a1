-- Supabase Realtime Presence: what its server does (SB) and what its clients make of it (SJ).
-- A topic is a room, a key a member_id, a socket a connection_id; track is upsert, untrack is delete, presence_state is
-- list, presence_diff is an event. The numbers are those of the scenario lists that these tests follow.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set presence.member_ids = 'any';
set role regress_alice;

-- SB-01: a client that joins gets the state, or an empty map if nobody is there.
select presence.state('topic');

-- SB-10: track. Everyone, including the sender, gets one diff: a join with the payload and a ref.
select test.flushed() as before \gset
select version as ref1, state from presence.upsert('topic', '{"name": "A", "t": 1}', member_id => 'key', audience => '{any}') \gset sb_
select test.flushed() is not null as published \gset
select event, member_id, state, version = :sb_ref1 as same_ref, connections from presence.changes(:before) where event <> 'position';
set role regress_bob;
select event, member_id, state, version = :sb_ref1 as same_ref from presence.changes(:before) where event <> 'position';
select presence.state('topic') = jsonb_build_object('key', jsonb_build_array(jsonb_build_object('presence_ref', :'sb_ref1', 'name', 'A', 't', 1))) as state;

-- SB-11: track with another payload is one event, an update: new ref, same stay.
set role regress_alice;
select test.flushed() as before \gset
select version > :sb_ref1 as new_ref, joined_at < updated_at as same_stay from presence.upsert('topic', '{"name": "A", "t": 2}', member_id => 'key');
select test.flushed() is not null as published \gset
select event, member_id, state, connections, reason from test.log(:before);

-- SB-12: the same payload again: accepted, without a diff.
select test.flushed() as before \gset
select state from presence.upsert('topic', '{"name": "A", "t": 2}', member_id => 'key');
select state from presence.upsert('topic', '{"t": 2, "name": "A"}', member_id => 'key');
select test.flushed() = :before as nothing;

-- SB-14: untrack: a leave with the last payload.
select presence.delete('topic', 'key');
select test.flushed() is not null as published \gset
select event, member_id, state, connections, reason from test.log(:before);

-- SB-13: the same payload after untrack is a new join.
select test.flushed() as before \gset
select state from presence.upsert('topic', '{"name": "A", "t": 2}', member_id => 'key', audience => '{any}');
select test.flushed() is not null as published \gset
select event, member_id, state, connections from test.log(:before);

-- SB-15: untrack without a track is accepted, without a diff.
select presence.delete('topic', 'key');
select test.flushed() as before \gset
select presence.delete('topic', 'key') as untracked, presence.delete('never', 'key') as untracked;
select test.flushed() = :before as nothing;

-- SB-16: event names in any case: SQL folds the names of functions.
select (PRESENCE.Upsert('topic', '{}')).state;
select PRESENCE.DELETE('topic');

-- SB-17: a payload that is not an object is refused there. Here any JSON is a state; what is not JSON is refused, the
-- session stays usable and there is no diff.
select test.flushed() as before \gset
select e.code from test.error($$ select presence.upsert('topic', 'not json') $$) e;
select e.code, e.message from test.error($$ select presence.update('topic', '"text"') $$) e;
select test.flushed() = :before as nothing;
select state from presence.upsert('topic', '"text"', member_id => 'key');
select regexp_replace(presence.state('topic')::text, '"\d+"', '"N"');

-- SB-18: track without payload is {}.
select state from presence.upsert('topic', member_id => 'bare');
select presence.delete_all();

-- SB-20: a payload that is too large: an error, no diff, and the existing member stays as it was.
select state from presence.upsert('topic', '{"small": true}');
select test.flushed() as before \gset
select e.code, e.message from test.error($$ select presence.upsert('topic', to_jsonb(repeat('x', 70000))) $$) e;
select test.flushed() = :before as nothing;
select state from presence.get('topic');
select presence.delete_all();

-- SB-21: the socket dies: a leave with the last payload. (The socket is this session.)
select test.flushed() as before \gset
select state from presence.upsert('topic', '{"online_at": 1}', session => true, audience => '{any}');
select state from presence.upsert('topic', '{"online_at": 2}', session => true);
\connect -
set role regress_bob;
select test.wait_until(format($$ exists (select from presence.event where seq > %s and event = 'leave') $$, :before));
select event, user_id, state, connections, reason from test.log(:before);

-- SB-30, SB-31, SB-33, SB-35: one function decides who may read and who may track. Reading alone: others' diffs arrive,
-- track is refused and makes none.
reset role;
create function test.authorize(room text, action text) returns boolean language sql stable as $$
    select case current_user when 'regress_alice' then true when 'regress_bob' then action = 'read' else false end
$$;
set presence.authorizer = 'test.authorize';
select test.flushed() as before \gset
set role regress_alice;
select state from presence.upsert('private', '{"a": 1}', audience => '{users}');
set role regress_bob;
select e.code, e.message from test.error($$ select presence.upsert('private') $$) e;
select test.flushed() is not null as published \gset
select member_id, state from presence.list('private');
select event, member_id, state from test.log(:before);
-- SB-35, SB-34: neither: nothing can be read, live or in the log; listening is refused.
set role regress_carol;
select count(*) from presence.list('private');
select count(*) from test.log(:before);
select e.code, e.message from test.error($$ select presence.listen('private') $$) e;
select e.code, e.message from test.error($$ select presence.upsert('private') $$) e;

-- SB-39: a policy that fails refuses, with its reason; no diff, no crash. SB-41: it leaves nothing behind.
reset role;
create or replace function test.authorize(room text, action text) returns boolean language plpgsql as $$
begin
    perform 1 / (length(room) - length(room));
    return true;
end
$$;
select test.flushed() as before \gset
set role regress_bob;
select e.* from test.error($$ select presence.upsert('private') $$) e \gx
select count(*) from presence.list('private');
-- the caller's own members are visible nevertheless
set role regress_alice;
select state, presence.heartbeat('private') from presence.get('private');
select presence.delete('private');
select test.flushed() is not null as published \gset
select event, member_id from test.log(:before);

-- SB-40: the policy gets the room, the action and the caller.
reset role;
create or replace function test.authorize(room text, action text) returns boolean language sql stable as $$
    select format('%s may %s %s', presence.user_id(), action, room) = 'regress_bob may join private'
$$;
set role regress_bob;
select state from presence.upsert('private', '{"b": 1}');
select e.code, e.message from test.error($$ select presence.upsert('other') $$) e;
select presence.delete('private');
reset role;
reset presence.authorizer;
drop function test.authorize(text, text);

-- A client as documented: it holds members by key with their versions, lists, and applies the log. Its rows are what
-- supabase-js calls onJoin and onLeave.
create table test.held (member_id text, connection_id text, version bigint, state jsonb, here boolean, primary key (member_id, connection_id));
grant all on test.held to public;
create function test.apply(member_id text, connection_id text, version bigint, state jsonb, here boolean) returns text language plpgsql as $$
declare
    old test.held;
begin
    select * into old from test.held h where h.member_id = apply.member_id and h.connection_id = apply.connection_id;
    if old.version >= apply.version then
        return null;
    end if;
    insert into test.held values (apply.member_id, apply.connection_id, apply.version, apply.state, apply.here)
    on conflict on constraint held_pkey do update set version = excluded.version, state = excluded.state, here = excluded.here;
    return case when apply.here and not coalesce(old.here, false) then format('join %s/%s %s', apply.member_id, apply.connection_id, apply.state)
                when apply.here then format('update %s/%s %s -> %s', apply.member_id, apply.connection_id, old.state, apply.state)
                when old.here then format('leave %s/%s %s', apply.member_id, apply.connection_id, apply.state) end;
end
$$;
-- syncState: the whole state, compared with what the client holds.
create function test.sync_state(room text) returns setof text language plpgsql as $$
declare
    line text;
    m record;
begin
    for m in select * from presence.list(sync_state.room) loop
        line := test.apply(m.member_id, m.connection_id, m.version, m.state, true);
        if line is not null then return next line; end if;
    end loop;
    for m in delete from test.held h where h.here and not exists (select from presence.get(sync_state.room, h.member_id, h.connection_id)) returning h.* loop
        return next format('leave %s/%s %s', m.member_id, m.connection_id, m.state);
    end loop;
end
$$;
-- syncDiff: the log after a seq.
create function test.sync_diff(room text, since bigint) returns setof text language plpgsql as $$
declare
    line text;
    e record;
begin
    for e in select * from presence.changes(sync_diff.since, sync_diff.room) loop
        if e.event in ('enter', 'update', 'leave') then
            line := test.apply(e.member_id, e.connection_id, e.version, e.state, e.event <> 'leave');
            if line is not null then return next line; end if;
        end if;
    end loop;
end
$$;
create function test.metas() returns table (key text, metas jsonb) language sql as $$
    select member_id, jsonb_agg(state order by version) from test.held where here group by member_id order by member_id
$$;
set presence.member_ids = 'any';
set role regress_gateway;

-- SJ-01: nothing held; the state arrives: one join for each key, and what is held equals it.
select count(presence.upsert('sj', to_jsonb(k), member_id => k)) from unnest(array['u1', 'u2', 'u3']) k;
select * from test.sync_state('sj');
select * from test.metas();
select (select jsonb_object_agg(key, metas) from test.metas())
    = (select jsonb_object_agg(key, (select jsonb_agg(m -> 'state') from jsonb_array_elements(value) m)) from jsonb_each(presence.state('sj'))) as as_state;
select * from test.sync_state('sj');

-- SJ-02: u4 is held and not in the new state: it leaves, with its data.
insert into test.held values ('u4', '', 1, '"u4"', true);
select presence.delete('sj', m) from unnest(array['u1', 'u2', 'u3']) m;
delete from test.held where member_id <> 'u4';
select count(presence.upsert('sj', to_jsonb(k), member_id => k)) from unnest(array['u1', 'u2', 'u3']) k;
select * from test.sync_state('sj');

-- SJ-03: one meta is held, the state has two: a join with the new one only.
select count(presence.upsert('sj', '"second"', member_id => 'u1', connection_id => '2'));
select * from test.sync_state('sj');

-- SJ-04: a diff joins another meta of a key: both, old first.
select test.flushed() as before \gset
select count(presence.upsert('sj', '"second"', member_id => 'u2', connection_id => '2'));
select test.flushed() is not null as published \gset
select * from test.sync_diff('sj', :before);
select * from test.metas() where key = 'u2';

-- SJ-06: one of two leaves: the key stays, with the other.
select test.flushed() as before \gset
select presence.delete('sj', 'u2');
select test.flushed() is not null as published \gset
select * from test.sync_diff('sj', :before);
select * from test.metas() where key = 'u2';
-- SJ-05: the last one leaves: the key is gone.
select test.flushed() as before \gset
select presence.delete('sj', 'u2', '2');
select test.flushed() is not null as published \gset
select * from test.sync_diff('sj', :before);
select count(*) from test.metas() where key = 'u2';

-- SJ-07: diffs that arrive before the state, or twice, or in any order: the newest version wins.
select test.flushed() as before \gset
select count(presence.upsert('sj', '"v1"', member_id => 'u5')) \gset
select test.flushed() is not null as published \gset
select count(presence.upsert('sj', '"v2"', member_id => 'u5')) \gset
select test.flushed() is not null as published \gset
select presence.delete('sj', 'u3') \gset
select test.flushed() is not null as published \gset
select count(presence.upsert('sj', '"v3"', member_id => 'u5')) \gset
select test.flushed() is not null as published \gset
truncate test.held;
select * from test.sync_state('sj');
select * from test.sync_diff('sj', :before);
truncate test.held;
select test.apply(member_id, connection_id, version, state, event <> 'leave') from presence.event where seq > :before order by seq desc;
select * from test.sync_state('sj');
select * from test.metas();

-- SJ-08: after a new join (a gap, a resync) it forgets everything and lists; older diffs change nothing.
select event from presence.changes(-1) limit 1;
truncate test.held;
select count(*) from test.sync_state('sj');
select * from test.sync_diff('sj', :before);

-- SJ-09: an update leaves exactly one meta, the new one.
select test.flushed() as before \gset
select count(presence.upsert('sj', '"v4"', member_id => 'u5')) \gset
select test.flushed() is not null as published \gset
select * from test.sync_diff('sj', :before);
select * from test.metas() where key = 'u5';

-- SJ-10: any text is an ordinary key.
select test.flushed() as before \gset
select count(presence.upsert('sj', to_jsonb(k), member_id => k)) from unnest(array['__proto__', 'constructor', 'toString', '"', '{}', 'a,b', '\']) k;
select test.flushed() is not null as published \gset
select * from test.sync_diff('sj', :before) line order by line collate "C";
select key collate "C", count(*) from jsonb_each(presence.state('sj')) where key !~ '^u' group by 1 order by 1;
select count(*) = 1 as found from presence.get('sj', '__proto__');

-- SJ-11: list(chooser): returns what the chooser picks of each.
select member_id, array_agg(state #>> '{}' order by joined_at) as chosen from presence.list('sj') where member_id ~ '^u' group by 1 order by 1;

-- SJ-12: the flat list of metas: presence_ref, which is the version, is added, and nothing else.
select key, array_agg(distinct k order by k) as names
from jsonb_each(presence.state('sj')) s, jsonb_array_elements(s.value) meta, jsonb_object_keys(meta) k where key ~ '^u' group by 1 order by 1;
select bool_and(meta ->> 'presence_ref' = o.version::text) as refs
from jsonb_each(presence.state('sj')) s, jsonb_array_elements(s.value) meta join presence.online o on meta ->> 'presence_ref' = o.version::text;

reset role;
select presence.delete_all(u) > 0 as left from unnest(array['regress_gateway']) u;
select count(*) from presence.member;
reset presence.member_ids;
drop table test.held cascade;
drop function test.flushed(), test.apply(text, text, bigint, jsonb, boolean), test.sync_state(text), test.sync_diff(text, bigint), test.metas();
