select * from presence.list('list', 100);
