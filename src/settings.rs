//! Every setting. docs/reference.md has a row for each; a test compares the two.

use crate::error::{Error, Result};
use crate::pg::encoding::decode;
use crate::validate;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::{PostgresGucEnum, pg_guard, pg_sys};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::RangeInclusive;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum MemberIds {
    #[name = c"own"]
    Own,
    #[name = c"any"]
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum SinkScope {
    #[name = c"own"]
    Own,
    #[name = c"all"]
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum NotifyPayload {
    #[name = c"full"]
    Full,
    #[name = c"doorbell"]
    Doorbell,
}

type Int = GucSetting<i32>;
type Text = GucSetting<Option<CString>>;

// Sizes of shared memory: fixed when the server starts.
static MAX_MEMBERS: Int = GucSetting::<i32>::new(100_000);
static MAX_DATABASES: Int = GucSetting::<i32>::new(8);
static EVENT_BUFFER: Int = GucSetting::<i32>::new(8 * 1024);

// Memory of each database's worker.
static WORKER_MEMORY: Int = GucSetting::<i32>::new(64 * 1024);

// Time.
static DEFAULT_TTL: Int = GucSetting::<i32>::new(90);
static SWEEP_INTERVAL: Int = GucSetting::<i32>::new(1_000);
static NOTIFY_DELAY: Int = GucSetting::<i32>::new(5);
static BEACON: Int = GucSetting::<i32>::new(30);
static RESTART_GRACE: Int = GucSetting::<i32>::new(30);
static HISTORY_RETENTION: Int = GucSetting::<i32>::new(3_600);
static NODE_BEAT: Int = GucSetting::<i32>::new(2_000);
static NODE_TIMEOUT: Int = GucSetting::<i32>::new(10_000);
static LAST_SEEN_RETENTION: Int = GucSetting::<i32>::new(30 * 24 * 60);

// Limits.
static MAX_STATE_SIZE: Int = GucSetting::<i32>::new(64);
static MAX_PER_USER: Int = GucSetting::<i32>::new(1_000);

// Beyond one server.
static NODE_NAME: Text = GucSetting::<Option<CString>>::new(Some(c""));

// Identity and visibility.
static TRUSTED_LOGIN_ROLES: Text = GucSetting::<Option<CString>>::new(Some(c"authenticator"));
static ANONYMOUS_ROLES: Text = GucSetting::<Option<CString>>::new(Some(c"anon"));
static SERVICE_ROLES: Text = GucSetting::<Option<CString>>::new(Some(c""));
static TEAMS_CLAIM: Text = GucSetting::<Option<CString>>::new(Some(c"app_metadata.teams"));
static DEFAULT_AUDIENCE: Text = GucSetting::<Option<CString>>::new(Some(c"room"));
static AUTHORIZER: Text = GucSetting::<Option<CString>>::new(Some(c""));
static STATUS_RANK: Text = GucSetting::<Option<CString>>::new(Some(c""));
static SINK: Text = GucSetting::<Option<CString>>::new(Some(c""));
static MEMBER_IDS: GucSetting<MemberIds> = GucSetting::<MemberIds>::new(MemberIds::Own);
static SINK_SCOPE: GucSetting<SinkScope> = GucSetting::<SinkScope>::new(SinkScope::Own);
static NOTIFY_PAYLOAD: GucSetting<NotifyPayload> = GucSetting::<NotifyPayload>::new(NotifyPayload::Full);
static SESSION_FEATURES: GucSetting<bool> = GucSetting::<bool>::new(true);
static FAST_PATH: GucSetting<bool> = GucSetting::<bool>::new(true);

thread_local! {
    /// Incremented when a setting changes that determines identity: cached identities are then stale.
    static IDENTITY_EPOCH: Cell<u64> = const { Cell::new(0) };
    /// Incremented when `presence.status_rank` changes.
    static STATUS_RANK_EPOCH: Cell<u64> = const { Cell::new(0) };
}

/// Called when a setting gets another value.
pub struct Hooks {
    pub authorizer: unsafe extern "C-unwind" fn(*const c_char, *mut c_void),
    pub notify_payload: unsafe extern "C-unwind" fn(c_int, *mut c_void),
}

pub fn define(hooks: Hooks) {
    let postmaster = GucContext::Postmaster;
    int(
        c"presence.max_members",
        c"Leases held in shared memory, over all databases.",
        c"About 100 bytes each, taken when the server starts. Beyond it leases live in the table: slower, \
          still correct.",
        &MAX_MEMBERS,
        1..=50_000_000,
        postmaster,
        GucFlags::empty(),
    );
    let postmaster = GucContext::Postmaster;
    int(
        c"presence.max_databases",
        c"Databases that may use presence.",
        c"Each takes an event buffer and about 650 kB of shared memory.",
        &MAX_DATABASES,
        1..=1_000,
        postmaster,
        GucFlags::empty(),
    );
    let postmaster = GucContext::Postmaster;
    int(
        c"presence.event_buffer",
        c"Size of each database's buffer for events that are not published yet.",
        c"One for each of max_databases. It limits what one transaction can publish; beyond it listeners \
          are told to list again.",
        &EVENT_BUFFER,
        64..=1_048_576,
        postmaster,
        GucFlags::UNIT_KB,
    );
    int(
        c"presence.worker_memory",
        c"Most memory that each database's worker uses for publishing and sweeping.",
        c"Beyond what any process of the server needs. No event is dropped for it: batches get smaller.",
        &WORKER_MEMORY,
        16 * 1024..=i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );

    int(
        c"presence.default_ttl",
        c"How long a lease lasts without a heartbeat, unless the member or the room says otherwise.",
        c"Clients send a heartbeat at least every third of it. Browsers run timers of hidden tabs once a \
          minute, so 90 s is a good value.",
        &DEFAULT_TTL,
        1..=2_592_000,
        GucContext::Userset,
        GucFlags::UNIT_S,
    );
    int(
        c"presence.sweep_interval",
        c"How long after its expiry a member is removed, at most.",
        c"Readers never see an expired member, however long this is: it is about rows and leave events.",
        &SWEEP_INTERVAL,
        10..=60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    int(
        c"presence.notify_delay",
        c"Shortest time between two publications; fast updates are conflated in it.",
        c"Of the updates of one member in that time only the newest is published. 0 publishes every update.",
        &NOTIFY_DELAY,
        0..=10_000,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    int(
        c"presence.beacon",
        c"How often listeners are told that the server is alive; 0 is never.",
        c"On the channel presence. Clients take silence for twice as long as a dead connection.",
        &BEACON,
        0..=86_400,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
    int(
        c"presence.restart_grace",
        c"Shortest time for which members are kept after a restart of the server.",
        c"Clients have this time to reconnect and send a heartbeat before their members leave.",
        &RESTART_GRACE,
        0..=86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    int(
        c"presence.history_retention",
        c"How long events are kept.",
        c"At least; up to half as long again. 0 keeps what presence.changes needs, and presence.history \
          shows nothing.",
        &HISTORY_RETENTION,
        0..=2_592_000,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
    int(
        c"presence.last_seen_retention",
        c"How long it is remembered when a user was last seen.",
        c"For the view presence.last_seen. 0 writes nothing.",
        &LAST_SEEN_RETENTION,
        0..=10_000_000,
        GucContext::Suset,
        GucFlags::UNIT_MIN,
    );

    int(
        c"presence.max_state_size",
        c"Largest state and metadata of a member, together, as JSON text.",
        c"Beyond it writes fail with 54000. Also the limit of a patch, a last word and the metadata of a \
          room.",
        &MAX_STATE_SIZE,
        1..=1_024,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    int(
        c"presence.max_per_user",
        c"Most members of one user in a database; 0 is no limit.",
        c"Beyond it entering fails with 54000. Service roles are exempt.",
        &MAX_PER_USER,
        0..=i32::MAX,
        GucContext::Suset,
        GucFlags::empty(),
    );

    // SAFETY: the hook has the signature of a string check hook and only reads.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"presence.node_name",
        c"This server's name: members are copied to a logged table, which outlives a crash; empty is off.",
        c"Up to 63 printable ASCII characters; the same on a primary and its standbys. Members survive a \
          crash and a failover, for the price of WAL that nobody waits for.",
            &NODE_NAME,
            GucContext::Postmaster,
            GucFlags::empty(),
            Some(check_node_name),
            None,
            None,
        );
    }
    int(
        c"presence.node_beat",
        c"How often a server with a name says that it is alive.",
        c"It writes a row of presence.node.",
        &NODE_BEAT,
        100..=60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );

    int(
        c"presence.node_timeout",
        c"How long after its last beat the members of a server are hidden elsewhere.",
        c"On a standby nobody is shown after that.",
        &NODE_TIMEOUT,
        1_000..=3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );

    identity(
        c"presence.trusted_login_roles",
        c"Login roles whose request.jwt.claims are trusted.",
        c"A list. Whoever can log in as one of them can be any user: only servers of the application \
          should. Sessions of these roles can neither listen nor have session members.",
        &TRUSTED_LOGIN_ROLES,
    );
    identity(
        c"presence.anonymous_roles",
        c"Roles that stand for people who are not signed in.",
        c"A list. They can read what is for everybody, and cannot be present.",
        &ANONYMOUS_ROLES,
    );
    identity(
        c"presence.service_roles",
        c"Roles that act for all users.",
        c"A list. They see everything and write for any user. Superusers, roles with BYPASSRLS and the \
          owner of the extension are service roles anyway.",
        &SERVICE_ROLES,
    );
    identity(
        c"presence.teams_claim",
        c"Path in the claims to the list of the user's teams.",
        c"Keys with dots between, in request.jwt.claims.",
        &TEAMS_CLAIM,
    );
    // SAFETY: the hook has the signature of a string check hook and only reads.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"presence.default_audience",
            c"Who sees a member unless the member or the room says otherwise: a list of tokens.",
            c"Tokens such as room, users or team:ID. room means that those in a room see each other.",
            &DEFAULT_AUDIENCE,
            GucContext::Suset,
            GucFlags::empty(),
            Some(check_audience),
            None,
            None,
        );
    }
    // SAFETY: the hooks have the signatures of a string's; one only reads, the other touches a thread-local number.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"presence.status_rank",
            c"Which status of a user's members presence.users shows: a list, the highest first.",
            c"Separated by commas, at most 64. Empty: the status of the member that was active last.",
            &STATUS_RANK,
            GucContext::Userset,
            GucFlags::empty(),
            Some(check_status_rank),
            Some(forget_status_rank),
            None,
        );
    }
    // SAFETY: the hooks have the signatures of assign hooks, and only look at shared memory.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"presence.authorizer",
        c"Function (room text, action text) returns boolean that decides who may read, join and manage a \
          room.",
        c"It runs as the caller. Only true is a yes. Empty: everybody with access may read and join.",
            &AUTHORIZER,
            GucContext::Suset,
            GucFlags::empty(),
            None,
            Some(hooks.authorizer),
            None,
        );
    }
    string(
        c"presence.sink",
        c"Function (presence.event[]) that is called with each batch of events.",
        c"It runs in a background worker as its owner, in order, and each event exactly once. After an error \
          it is called again.",
        &SINK,
    );
    GucRegistry::define_enum_guc(
        c"presence.sink_scope",
        c"Whether the sink is given this server's own events, or also those of others.",
        c"own: events of members of this server. all: also those of members of other servers. Set \
          that on one server only, unless each of them should process every event.",
        &SINK_SCOPE,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_enum_guc(
        c"presence.member_ids",
        c"Whether a user may choose any member_id, or only the own user id.",
        c"own: member_id is the user id. any: the first one to enter with a member_id has it until they \
          leave.",
        &MEMBER_IDS,
        GucContext::Suset,
        GucFlags::empty(),
    );
    // SAFETY: as above.
    unsafe {
        GucRegistry::define_enum_guc_with_hooks(
            c"presence.notify_payload",
            c"Whether notifications carry the event, or only that there is one.",
            c"full: the event as JSON. doorbell: listeners read presence.changes under their own rights.",
            &NOTIFY_PAYLOAD,
            GucContext::Suset,
            GucFlags::empty(),
            None,
            Some(hooks.notify_payload),
            None,
        );
    }
    GucRegistry::define_bool_guc(
        c"presence.session_features",
        c"Allow listen and session members; turn it off behind a transaction pooler.",
        c"A server cannot detect a pooler, and a session there belongs to many clients.",
        &SESSION_FEATURES,
        GucContext::Suset,
        GucFlags::empty(),
    );

    GucRegistry::define_bool_guc(
        c"presence.fast_path",
        c"Let verbs bypass the executor where the result is the same; off is for tests and diagnosis.",
        c"The results are the same.",
        &FAST_PATH,
        GucContext::Suset,
        GucFlags::empty(),
    );

    #[cfg(feature = "injection")]
    crate::injection::define();

    // SAFETY: the prefix is a C string that lives for ever.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"presence".as_ptr()) };
}

fn int(
    name: &'static CStr,
    what: &'static CStr,
    more: &'static CStr,
    setting: &'static Int,
    range: RangeInclusive<i32>,
    context: GucContext,
    unit: GucFlags,
) {
    GucRegistry::define_int_guc(name, what, more, setting, *range.start(), *range.end(), context, unit);
}

fn string(name: &'static CStr, what: &'static CStr, more: &'static CStr, setting: &'static Text) {
    GucRegistry::define_string_guc(name, what, more, setting, GucContext::Suset, GucFlags::empty());
}

fn identity(name: &'static CStr, what: &'static CStr, more: &'static CStr, setting: &'static Text) {
    // SAFETY: the hook has the signature of a string assign hook and touches a thread-local number.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            what,
            more,
            setting,
            GucContext::Suset,
            GucFlags::empty(),
            None,
            Some(forget_identity),
            None,
        );
    }
}

/// Checked here, so that whoever sets a wrong value gets the error, not everybody who enters.
#[pg_guard]
unsafe extern "C-unwind" fn check_audience(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the new value, a zero-terminated string.
    let tokens = split(unsafe { CStr::from_ptr(*value) }.to_bytes());
    is_accepted(validate::audience(&tokens, b"room").map(|_| ()))
}

#[pg_guard]
unsafe extern "C-unwind" fn check_node_name(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    is_accepted(validate::node_name(unsafe { CStr::from_ptr(*value) }.to_bytes()))
}

#[pg_guard]
unsafe extern "C-unwind" fn check_status_rank(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    let list = unsafe { CStr::from_ptr(*value) }.to_bytes();
    is_accepted(validate::status_rank(list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)))
}

/// The result of a check hook, with the error for whoever sets a wrong value.
fn is_accepted(checked: Result<()>) -> bool {
    let Err(error) = checked else { return true };
    let hint = match error {
        Error::InvalidArgument { .. } => "See the setting's description in pg_settings.".into(),
        _ => error.hint(),
    };
    if let (Ok(detail), Ok(hint)) = (CString::new(error.detail()), CString::new(hint)) {
        // SAFETY: copies that the server frees, and that are valid until then.
        unsafe {
            let copy = |text: CString| pg_sys::MemoryContextStrdup(pg_sys::ErrorContext, text.as_ptr());
            pg_sys::GUC_check_errdetail_string = copy(detail);
            pg_sys::GUC_check_errhint_string = copy(hint);
        }
    }
    false
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_status_rank(_value: *const c_char, _extra: *mut c_void) {
    STATUS_RANK_EPOCH.set(STATUS_RANK_EPOCH.get() + 1);
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_identity(_value: *const c_char, _extra: *mut c_void) {
    IDENTITY_EPOCH.with(|epoch| epoch.set(epoch.get() + 1));
}

/// The settings that determine identity: if they change, channel names may be in the wrong hands.
pub fn of_identity() -> Vec<Vec<u8>> {
    let settings = [
        ("trusted", &TRUSTED_LOGIN_ROLES),
        ("anonymous", &ANONYMOUS_ROLES),
        ("service", &SERVICE_ROLES),
        ("teams", &TEAMS_CLAIM),
    ];
    settings.map(|(name, setting)| [name.as_bytes(), b" ", &bytes(setting)].concat()).into()
}

pub fn identity_epoch() -> u64 {
    IDENTITY_EPOCH.with(Cell::get)
}

pub fn max_members() -> usize {
    MAX_MEMBERS.get() as usize
}

pub fn max_databases() -> usize {
    MAX_DATABASES.get() as usize
}

/// In bytes; a multiple of 8.
pub fn event_buffer() -> usize {
    EVENT_BUFFER.get() as usize * 1024
}

/// In bytes: the most that a worker may use, in addition to what any process of the server needs.
pub fn worker_memory() -> usize {
    WORKER_MEMORY.get() as usize * 1024
}

/// Microseconds.
pub fn default_ttl() -> u64 {
    DEFAULT_TTL.get() as u64 * 1_000_000
}

/// Microseconds.
pub fn sweep_interval() -> u64 {
    SWEEP_INTERVAL.get() as u64 * 1_000
}

/// Microseconds.
pub fn notify_delay() -> u64 {
    NOTIFY_DELAY.get() as u64 * 1_000
}

/// Microseconds; 0 is never.
pub fn beacon() -> u64 {
    BEACON.get() as u64 * 1_000_000
}

/// Microseconds.
pub fn restart_grace() -> u64 {
    RESTART_GRACE.get() as u64 * 1_000_000
}

/// Microseconds.
pub fn history_retention() -> u64 {
    HISTORY_RETENTION.get() as u64 * 1_000_000
}

/// This server's name; None: nothing is copied.
pub fn node_name() -> Option<Vec<u8>> {
    Some(bytes(&NODE_NAME)).filter(|name| !name.is_empty())
}

/// Microseconds.
pub fn node_beat() -> u64 {
    NODE_BEAT.get() as u64 * 1_000
}

/// Microseconds.
pub fn node_timeout() -> u64 {
    NODE_TIMEOUT.get() as u64 * 1_000
}

/// Microseconds.
pub fn last_seen_retention() -> u64 {
    LAST_SEEN_RETENTION.get() as u64 * 60_000_000
}

/// Bytes.
pub fn max_state_size() -> usize {
    MAX_STATE_SIZE.get() as usize * 1024
}

pub fn max_per_user() -> i32 {
    MAX_PER_USER.get()
}

pub fn member_ids() -> MemberIds {
    MEMBER_IDS.get()
}

pub fn sink_scope() -> SinkScope {
    SINK_SCOPE.get()
}

pub fn notify_payload() -> NotifyPayload {
    NOTIFY_PAYLOAD.get()
}

pub fn fast_path() -> bool {
    FAST_PATH.get()
}

pub fn session_features() -> bool {
    SESSION_FEATURES.get()
}

/// Names and tokens are in the encoding of the database, as the tables have them.
pub fn trusted_login_roles() -> Vec<Vec<u8>> {
    list(&TRUSTED_LOGIN_ROLES)
}

pub fn anonymous_roles() -> Vec<Vec<u8>> {
    list(&ANONYMOUS_ROLES)
}

pub fn service_roles() -> Vec<Vec<u8>> {
    list(&SERVICE_ROLES)
}

pub fn default_audience() -> Vec<Vec<u8>> {
    list(&DEFAULT_AUDIENCE)
}

/// The highest first.
pub fn status_rank() -> Vec<Vec<u8>> {
    list(&STATUS_RANK)
}

pub fn status_rank_epoch() -> u64 {
    STATUS_RANK_EPOCH.get()
}

pub fn teams_claim() -> String {
    decode(&bytes(&TEAMS_CLAIM))
}

pub fn sink() -> Vec<u8> {
    bytes(&SINK)
}

pub fn authorizer() -> Vec<u8> {
    bytes(&AUTHORIZER)
}

fn bytes(setting: &Text) -> Vec<u8> {
    setting.get().map(CString::into_bytes).unwrap_or_default()
}

fn list(setting: &Text) -> Vec<Vec<u8>> {
    setting.get().map(|value| split(value.to_bytes())).unwrap_or_default()
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let names = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}
