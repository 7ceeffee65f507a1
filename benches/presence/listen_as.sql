\set room random(0, 9)
begin;
select set_config('request.jwt.claims', '{"sub":"' || :who || '","role":"app"}', true);
set local role app;
select count(*) from presence.channels('mine-' || :room);
rollback;
