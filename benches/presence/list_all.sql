select * from presence.list();
