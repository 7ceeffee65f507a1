\set amount random(1, 1000000)
begin;
insert into orders (customer, amount) values ('somebody', :amount);
commit;
