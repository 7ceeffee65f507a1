//! What a process of the server takes, as the system tells it.

use super::{Over, millis};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A figure of a process's memory, in kB.
pub fn kilobytes(pid: i64, figure: &str) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with(figure)).expect(figure);
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size")
}

/// The same in MB.
pub fn memory(pid: i64, figure: &str) -> i64 {
    kilobytes(pid, figure) / 1024
}

/// Watches a process's own memory while something happens: the most it had, in MB. (The peak that the system counts
/// has shared memory in it: a large ring is read, and that is all.)
pub fn peak(pid: i64, body: impl FnOnce()) -> i64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Relaxed) {
                most = most.max(memory(pid, "RssAnon:"));
                std::thread::sleep(millis(2));
            }
            most
        });
        let over = Over::tell(&done);
        body();
        drop(over);
        watch.join().expect("a figure")
    })
}
