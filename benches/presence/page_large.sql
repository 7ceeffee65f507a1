select * from presence.list('large', 100);
