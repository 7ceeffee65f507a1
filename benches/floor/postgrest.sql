\set room random(5001, 5100)
\set member random(1, 100)
\set x random(1, 1000000)
begin;
set local role web_a;
select set_config('request.jwt.claims', '{"sub":"' || :member || '","role":"web_a"}', true);
select :room::text, jsonb_build_object('x', :x::int, 'tool', 'pen'), :member::text;
commit;
\set room random(5001, 5100)
\set member random(1, 100)
\set x random(1, 1000000)
begin;
set local role web_b;
select set_config('request.jwt.claims', '{"sub":"' || :member || '","role":"web_b"}', true);
select :room::text, jsonb_build_object('x', :x::int, 'tool', 'pen'), :member::text;
commit;
