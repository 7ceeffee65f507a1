\set n :n + 1
delete from presence where room = 'bulk' and member_id = :n::text and connection_id = '';
