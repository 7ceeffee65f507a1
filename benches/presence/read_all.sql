-- Reads page by page, as a client reads a room. Returns how many members, in how many seconds.
create function pg_temp.read_all(of_room text, out members bigint, out seconds float) language plpgsql as $$
declare
    page presence.online[];
    last text[];
    began timestamptz = clock_timestamp();
begin
    members := 0;
    loop
        page := array(select o from presence.list(of_room, 1000, last) o);
        members := members + cardinality(page);
        exit when cardinality(page) < 1000;
        last := array[page[1000].member_id, page[1000].connection_id];
    end loop;
    seconds := extract(epoch from clock_timestamp() - began);
end
$$;
select * from pg_temp.read_all('million');
