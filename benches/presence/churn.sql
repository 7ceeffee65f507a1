\set room random(1, 20)
\set who random(1, 100000)
begin;
set local role app;
select set_config('request.jwt.claims', '{"sub":"guest' || :who || '"}', true);
select presence.upsert('busy-' || :room);
commit;
begin;
set local role app;
select set_config('request.jwt.claims', '{"sub":"guest' || :who || '"}', true);
select count(*) from presence.channels('busy-' || :room);
commit;
\sleep 100 ms
begin;
set local role app;
select set_config('request.jwt.claims', '{"sub":"guest' || :who || '"}', true);
select presence.delete('busy-' || :room);
commit;
