-- The same for the databases of presence_ext and of the rival.
create table batch as
select id, array_agg((1 + floor(random() * :rooms))::int::text) as rooms,
       array_agg((1 + floor(random() * 100))::int::text) as members
from generate_series(1, 100) id, generate_series(1, 1000) group by id;
create unique index on batch (id);
create table orders (id bigint generated always as identity primary key, customer text, amount integer,
                     at timestamptz default now());
grant select, insert on batch, orders to app, web_a, web_b;
