select * from presence.occupancy('large');
