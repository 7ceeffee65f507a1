-- From 0.1.0 to 0.2.0. A name without a schema is PostgreSQL's own.
set local search_path = pg_catalog, pg_temp;

-- New SQL calls the new library: it must have been loaded.
do $$ begin
    if (select library_version from presence._health()) <> '0.2.0' then
        raise exception 'the server still runs another version of the library presence_ext'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Restart the server, then update again.';
    end if;
end $$;

comment on view presence.health is
    'One row: versions, the worker (none, starting, running, yielded, absent), rows of members, lease slots used '
    'and there are, the event buffer, counters since the server started, the last error of the worker. '
    'Members of pg_monitor may read it.';

grant usage on schema presence to pg_monitor;

grant select on presence.health to pg_monitor;

grant execute on function presence._health() to pg_monitor;
