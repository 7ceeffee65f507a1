//! Measures the allocated memory, and returns free memory to the system. glibc keeps the memory of a burst
//! for as long as something allocated later lives above it, and sockets live long: without this, the memory
//! of the process reflects its worst minute.

use std::time::Duration;

const PAUSE: Duration = Duration::from_secs(30);
/// For less than this, walking the heap is not worthwhile.
const WORTH: usize = 4 << 20;

pub struct Heap {
    pub allocated: usize,
    /// Held for later allocations, or already returned to the system but still counted.
    pub free: usize,
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn heap() -> Option<Heap> {
    // SAFETY: mallinfo2 takes no arguments, and locks each arena while it reads it.
    let info = unsafe { libc::mallinfo2() };
    Some(Heap { allocated: info.uordblks + info.hblkhd, free: info.fordblks })
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    // SAFETY: malloc_trim returns only pages that hold nothing allocated, and locks each arena meanwhile.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return memory by themselves, or not at all.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn heap() -> Option<Heap> {
    None
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

/// Periodically returns free memory to the system, if there is much of it.
pub async fn keep_giving_back() {
    loop {
        tokio::time::sleep(PAUSE).await;
        if heap().is_some_and(|heap| heap.free > WORTH.max(heap.allocated / 8)) {
            // Sockets do not wait for it, except when they allocate in the arena that is locked.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Resident memory of this process, in bytes.
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
