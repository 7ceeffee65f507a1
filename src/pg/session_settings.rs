//! What this session has set, hashed: an answer that may depend on any setting holds while this stays the same.
//!
//! A custom setting such as `app.tenant` has no hook, so the server's own list of settings is looked at.

use pgrx::pg_sys::{self, GucSource, config_bool, config_enum, config_generic, config_int, config_real};
use pgrx::pg_sys::{config_string, config_type};
use std::ffi::CStr;
use std::hash::Hasher;

/// Hash everything that SET, set_config and the like have set, here or in a running function.
pub fn hash(hasher: &mut impl Hasher) {
    each(|setting| {
        if setting.source >= GucSource::PGC_S_OVERRIDE {
            hasher.write_usize(std::ptr::from_ref(setting) as usize);
            hash_value(setting, hasher);
        }
    });
}

fn hash_value(setting: &config_generic, hasher: &mut impl Hasher) {
    let setting = std::ptr::from_ref(setting);
    // SAFETY: the type says which struct this is the head of; `variable` points to the current value.
    unsafe {
        match (*setting).vartype {
            config_type::PGC_BOOL => hasher.write_u8(u8::from(*(*setting.cast::<config_bool>()).variable)),
            config_type::PGC_INT => hasher.write_i32(*(*setting.cast::<config_int>()).variable),
            config_type::PGC_ENUM => hasher.write_i32(*(*setting.cast::<config_enum>()).variable),
            config_type::PGC_REAL => {
                hasher.write_u64((*(*setting.cast::<config_real>()).variable).to_bits());
            }
            _ => {
                let value = *(*setting.cast::<config_string>()).variable;
                if !value.is_null() {
                    hasher.write(CStr::from_ptr(value).to_bytes_with_nul());
                }
            }
        }
    }
}

#[cfg(feature = "pg15")]
fn each(mut visit: impl FnMut(&config_generic)) {
    // SAFETY: the server's array of pointers to its settings; neither changes while we look.
    unsafe {
        let count = pg_sys::GetNumConfigOptions() as usize;
        for setting in std::slice::from_raw_parts(pg_sys::get_guc_variables(), count) {
            visit(&**setting);
        }
    }
}

/// From 16 on the settings with non-default values form a ring, which contains the list's head.
#[cfg(not(feature = "pg15"))]
fn each(mut visit: impl FnMut(&config_generic)) {
    use std::cell::Cell;
    use std::mem::offset_of;

    thread_local! {
        static HEAD: Cell<*mut pg_sys::dlist_node> = const { Cell::new(std::ptr::null_mut()) };
    }

    fn setting_of(link: *mut pg_sys::dlist_node) -> *mut config_generic {
        link.wrapping_byte_sub(offset_of!(config_generic, nondef_link)).cast()
    }

    /// The list's head, which is the link without a setting. The ring is never empty: it contains the session's user.
    fn find_head() -> *mut pg_sys::dlist_node {
        // SAFETY: the array is ours, its elements live as long as the server; links of a ring lead back to the first.
        unsafe {
            let mut count = 0;
            let settings = pg_sys::get_guc_variables(&mut count);
            let known: std::collections::HashSet<_> =
                std::slice::from_raw_parts(settings, count as usize).iter().copied().collect();
            pg_sys::pfree(settings.cast());
            let start = known.iter().find(|setting| (***setting).source != GucSource::PGC_S_DEFAULT);
            let Some(start) = start else { return std::ptr::null_mut() };
            let mut link = (**start).nondef_link.next;
            while known.contains(&setting_of(link)) {
                link = (*link).next;
            }
            link
        }
    }

    if HEAD.get().is_null() {
        HEAD.set(find_head());
    }
    let head = HEAD.get();
    if head.is_null() {
        return;
    }
    // SAFETY: the head is static; all other links of its ring belong to settings. None changes while we look.
    unsafe {
        let mut link = (*head).next;
        while link != head {
            visit(&*setting_of(link));
            link = (*link).next;
        }
    }
}
