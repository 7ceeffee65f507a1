\set room random(1, 1000000)
select presence.rotate_channels('left-' || :room);
