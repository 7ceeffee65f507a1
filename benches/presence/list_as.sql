begin;
select set_config('request.jwt.claims', '{"sub":"' || :who || '","role":"app"}', true);
set local role app;
select * from presence.list();
rollback;
