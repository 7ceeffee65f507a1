select * from presence.list('list', 1000);
