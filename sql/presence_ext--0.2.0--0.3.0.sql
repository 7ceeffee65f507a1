-- From 0.2.0 to 0.3.0. A name without a schema is PostgreSQL's own.
set local search_path = pg_catalog, pg_temp;

-- New SQL calls the new library: it must have been loaded.
do $$ begin
    if (select pg_catalog.string_to_array(library_version, '.')::integer[] from presence._health()) < '{0,3,0}' then
        raise exception 'the server still runs an older version of the library presence_ext'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Restart the server, then update again.';
    end if;
end $$;
