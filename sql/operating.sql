create function presence.worker_pid() returns integer
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_worker_pid';
comment on function presence.worker_pid() is
    'The process that publishes all events of this database, NULL while there is none. Listeners compare it with '
    'the sender of a notification.';

create function presence.wait_for_flush(timeout interval) returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_wait_for_flush';
comment on function presence.wait_for_flush(interval) is
    'Wait until everything that was committed before the call is published. Returns false if the timeout ran out. For '
    'tests and scripts. Errors: 22023 a timeout that is negative or longer than a day; 25006 a standby.';

create function presence.sweep() returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_sweep';
comment on function presence.sweep() is
    'Remove expired members now, in this transaction, as the worker does by itself, and write what has reverted. '
    'Returns how many members were removed. For service roles. Errors: 42501 not a service role; 25006 a standby.';

create function _presence._health(
    out library_version text, out worker_pid integer, out worker_state text, out slots_used bigint,
    out slots_max bigint, out events_buffered_bytes bigint, out event_buffer_bytes bigint,
    out events_published bigint, out events_dropped bigint, out notifications_sent bigint, out heartbeats bigint,
    out expired bigint, out last_sweep_at timestamptz, out sweep_lag interval, out resyncs bigint,
    out sink_position bigint, out sink_lag bigint, out last_error text
) returns setof record
    language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'presence_health';
comment on function _presence._health() is 'What the view presence.health shows of shared memory.';

create function _presence._trouble(out last_error_at timestamptz, out failing_since timestamptz) returns setof record
    language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'presence_trouble';
comment on function _presence._trouble() is 'When the last error of presence.health was, and since when one persists.';

create function _presence._fast_writes() returns bigint
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_fast_writes';
comment on function _presence._fast_writes() is
    'How many members verbs have written without the policies, since the server started.';

create function _presence._members() returns bigint
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_members';
comment on function _presence._members() is 'Rows of presence.member; NULL on a standby.';

create function _presence._beat_age() returns interval
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_beat_age';
comment on function _presence._beat_age() is
    'How long ago this server, or the primary of this standby, wrote a beat that was seen here; NULL if none was.';

create view presence.health as
select h.library_version,
       (select e.extversion from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'presence_ext')
           as extension_version,
       h.worker_pid, h.worker_state,
       _presence._members() as members,
       h.slots_used, h.slots_max, h.events_buffered_bytes, h.event_buffer_bytes, h.events_published,
       h.events_dropped, h.notifications_sent, h.heartbeats, h.expired, h.last_sweep_at, h.sweep_lag, h.resyncs,
       h.sink_position, h.sink_lag, h.last_error, t.last_error_at, t.failing_since,
       _presence._fast_writes() as fast_writes, _presence._node_name() as node, _presence._beat_age() as beat_age,
       (select coalesce(pg_catalog.max(pg_catalog.pg_wal_lsn_diff(
                   case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                        else pg_catalog.pg_current_wal_lsn() end, s.restart_lsn)), 0)::bigint
        from pg_catalog.pg_replication_slots s
        where s.slot_type operator(pg_catalog.=) 'logical' and not s.active
          and s.database operator(pg_catalog.=) pg_catalog.current_database()) as kept_wal
from _presence._health() h cross join _presence._trouble() t;
comment on view presence.health is
    'One row: versions, the worker (none, starting, running, yielded, absent, standby), rows of members, lease '
    'slots used and their maximum, the event buffer in bytes, counters since the server started, the last error '
    'of the worker or the sink and its time, since when every attempt has failed (NULL: all is well), how many '
    'members were written by the fast path (presence.fast_path), the name of the server, the age of its last '
    'beat, and the WAL kept for slots that nobody reads. Members of pg_monitor may read it.';

create function _presence._announce() returns void
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_announce';
comment on function _presence._announce() is 'The extension was created: a worker is wanted here.';
