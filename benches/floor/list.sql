select * from plain where room = 'list' order by member_id, connection_id limit 1000;
