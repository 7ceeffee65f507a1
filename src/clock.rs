//! Two clocks: leases run on the boot clock, which nobody steps; the wall clock is for people to read.

use crate::pg::snapshot::is_one_for_all;
use crate::shared::control;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

/// Microseconds between the Unix and the PostgreSQL epoch (2000-01-01).
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// How far the wall clock may drift from what we believe before we believe it: readers agree to the microsecond
/// on the time of one deadline, and a stepped clock is followed at once.
const TOLERANCE: i64 = 500;

/// Microseconds since the machine started, asleep or awake: CLOCK_BOOTTIME.
pub fn boot() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec; the call has no other effect.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// The wall clock as a timestamptz: microseconds since 2000-01-01 UTC.
pub fn wall() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Now, as members' times and events are told: on one clock, so that of two changes the later one never looks older.
/// (The wall clock itself may be up to TOLERANCE ahead of or behind what `wall_of` says.)
pub fn now() -> i64 {
    wall_of(boot())
}

thread_local! {
    /// A beginning by the wall clock, and the same by the boot clock as it was worked out first: later the wall
    /// clock may have been set.
    static BEGAN: Cell<(i64, u64)> = const { Cell::new((i64::MIN, 0)) };
}

/// By the boot clock, when the statement that is running began (the transaction, where that has one snapshot for
/// all): a snapshot in use is no older.
pub fn read_since() -> u64 {
    // SAFETY: plain reads of this process's state.
    let began = unsafe {
        if is_one_for_all() {
            pg_sys::GetCurrentTransactionStartTimestamp()
        } else {
            pg_sys::GetCurrentStatementStartTimestamp()
        }
    };
    let (known, since) = BEGAN.get();
    if known == began {
        return since;
    }
    let since = boot().saturating_sub((wall() - began).max(0) as u64);
    BEGAN.set((began, since));
    since
}

/// The wall clock in microseconds since 1970, from which versions start.
pub fn unix() -> u64 {
    (wall() + POSTGRES_EPOCH).max(0) as u64
}

/// The wall time of a moment of the boot clock.
pub fn wall_of(boot_time: u64) -> i64 {
    let believed = &control().wall_offset;
    let mut offset = believed.load(Relaxed);
    let is_off = |measured: i64| (measured - offset).abs() > TOLERANCE;
    // It may only look so, when we had to wait for the processor between the one clock and the other.
    if is_off(wall() - boot() as i64)
        && let Some(measured) = measure_offset().filter(|measured| is_off(*measured))
    {
        believed.store(measured, Relaxed);
        offset = measured;
    }
    (boot_time as i64).saturating_add(offset)
}

/// The moment of the boot clock whose wall time `wall_of` has said.
pub fn boot_of(wall_time: i64) -> u64 {
    wall_time.saturating_sub(control().wall_offset.load(Relaxed)).max(0) as u64
}

/// How far the wall clock is ahead of the boot clock: of several readings the one that took the least time.
fn measure_offset() -> Option<i64> {
    let reading = |_| {
        let (before, wall, after) = (boot(), wall(), boot());
        (after.saturating_sub(before), wall - before as i64)
    };
    (0..5).map(reading).min().map(|(_, offset)| offset)
}

/// The same for rows of one statement, `now` on the boot clock: asks the wall clock at most once a millisecond.
pub fn wall_of_at(boot_time: u64, now: u64) -> i64 {
    if now.abs_diff(ASKED.get()) < 1_000 {
        return (boot_time as i64).saturating_add(control().wall_offset.load(Relaxed));
    }
    ASKED.set(now);
    wall_of(boot_time)
}

thread_local! {
    /// When `wall_of_at` asked the wall clock last.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}
