-- Reading functions on a standby, where presence.member can be neither read nor planned for: each has a twin that reads
-- the copy, generated from its own text. A support function tells the planner which of the two to plan.

create function _presence._reads(internal) returns internal
    language c strict as 'MODULE_PATHNAME', 'presence_reads';
comment on function _presence._reads(internal) is
    'For the planner: on a standby, and while members come back after a crash, what reads members reads the copy.';

do $$
declare
    function_name name;
    signature regprocedure;
    spoken regprocedure;
    source text;
    quoting text := current_setting('quote_all_identifiers');
begin
    perform set_config('quote_all_identifiers', 'off', true);
    foreach function_name in array array['get', 'list', 'occupancy', 'rooms', 'state', 'users'] loop
        select p.oid into strict signature from pg_proc p
        where p.pronamespace = 'presence'::regnamespace and p.proname = function_name;
        -- list itself is not written in SQL.
        spoken := case function_name when 'list' then '_presence._list(text, integer, text[])'::regprocedure else signature end;
        source := replace(pg_get_functiondef(spoken), format('FUNCTION %s(', split_part(spoken::text, '(', 1)),
                          format('FUNCTION _presence._shared_%s(', function_name));
        source := replace(source, 'presence.online o', 'presence.shared_online o');
        -- Arguments are qualified with the function's name.
        execute regexp_replace(source, format('\m%s\.', split_part(split_part(spoken::text, '(', 1), '.', 2)),
                               format('_shared_%s.', function_name), 'g');
        execute format('comment on function _presence._shared_%s(%s) is %L', function_name,
                       pg_get_function_identity_arguments(signature), 'The same by the copy, for standbys.');
        execute format('alter function %s support _presence._reads', signature);
    end loop;
    perform set_config('quote_all_identifiers', quoting, true);
end
$$;
alter function presence.history(text, timestamptz, timestamptz, integer, text, text, bigint) support _presence._reads;
alter function presence.changes(bigint, text, integer) support _presence._reads;
