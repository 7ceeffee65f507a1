//! What the gateway has allocated, and that the rest goes back to the system. glibc keeps what a burst has needed for as
//! long as something that was allocated later lives above it, and sockets live long: without this, the memory of the
//! process says how bad its worst minute was.

use std::time::Duration;

const PAUSE: Duration = Duration::from_secs(30);
/// Less than this is not worth the walk through the heap.
const WORTH: usize = 4 << 20;

pub struct Heap {
    pub allocated: usize,
    /// Held for later allocations, or given back and only counted.
    pub free: usize,
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn heap() -> Option<Heap> {
    // SAFETY: it takes no arguments, and locks each arena while it reads it.
    let info = unsafe { libc::mallinfo2() };
    Some(Heap { allocated: info.uordblks + info.hblkhd, free: info.fordblks })
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    // SAFETY: it gives back pages that hold nothing allocated, and locks each arena meanwhile.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves, or not at all.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn heap() -> Option<Heap> {
    None
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

/// For ever: give back what is free, when that is much.
pub async fn keep_giving_back() {
    loop {
        tokio::time::sleep(PAUSE).await;
        if heap().is_some_and(|heap| heap.free > WORTH.max(heap.allocated / 8)) {
            // Sockets do not wait for it, except where they allocate in the same arena.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Of this process, in bytes.
    fn resident() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_a_burst_has_needed_goes_back_though_something_lives_above_it() {
        let burst: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1000]).collect();
        let above = vec![1u8; 1000];
        let full = heap().unwrap().allocated;
        assert!(full > 64_000_000);
        drop(burst);
        assert!(heap().unwrap().allocated < full - 60_000_000);
        let before = resident();
        give_back();
        assert!(before - resident() > 50_000_000, "{before} before, {} now", resident());
        drop(above);
    }
}
