\set amount random(1, 1000000)
\set room random(1, :rooms)
\set member random(1, 100)
begin;
insert into orders (customer, amount) values ('somebody', :amount);
select presence.upsert(:room, jsonb_build_object('x', :amount::int), :member);
commit;
