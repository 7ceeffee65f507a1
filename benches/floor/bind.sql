\set room random(1, :rooms)
\set member random(1, 100)
select :room::text, :member::text;
