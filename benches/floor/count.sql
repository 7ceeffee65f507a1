select count(*) from plain_large where room = 'large';
