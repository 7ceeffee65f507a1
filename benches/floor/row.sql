\set room random(1, :rooms)
\set member random(1, 100)
select p from plain_online p where room = :room::text and member_id = :member::text and connection_id = '';
