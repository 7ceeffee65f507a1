//! Points at which a test can stall a backend, to test what happens in between. Compiled for tests only.

#[cfg(feature = "injection")]
mod points {
    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
    use std::ffi::CString;

    static STALL_AT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
    static STALL_WHILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

    pub fn define() {
        let empty = GucFlags::empty();
        let point = c"Test only: the point at which this session stalls.";
        GucRegistry::define_string_guc(
            c"presence.stall_at",
            point,
            c"",
            &STALL_AT,
            GucContext::Userset,
            empty,
        );
        let file = c"Test only: it stalls for as long as this file exists.";
        GucRegistry::define_string_guc(
            c"presence.stall_while",
            file,
            c"",
            &STALL_WHILE,
            GucContext::Userset,
            empty,
        );
    }

    pub fn stall(point: &str) {
        if value(&STALL_AT) != point {
            return;
        }
        // A test may die, so nobody waits for ever.
        for _ in 0..60_000 {
            if !is_on() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Behave as if nobody read notifications: filling the real queue takes 8 GB by default.
    pub fn fill_notify_queue() {
        if value(&STALL_AT) == "notify queue" && is_on() {
            pgrx::ereport!(
                pgrx::PgLogLevel::ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                "too many notifications in the NOTIFY queue"
            );
        }
    }

    fn value(setting: &GucSetting<Option<CString>>) -> String {
        setting.get().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn is_on() -> bool {
        std::path::Path::new(&value(&STALL_WHILE)).exists()
    }
}

#[cfg(feature = "injection")]
pub use points::{define, fill_notify_queue, stall};

#[cfg(not(feature = "injection"))]
#[inline(always)]
pub fn stall(_point: &str) {}

#[cfg(not(feature = "injection"))]
#[inline(always)]
pub fn fill_notify_queue() {}
