//! A server process's memory usage, as reported by the operating system.

use super::{Over, millis};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A field of /proc/PID/status, in kB.
pub fn kilobytes(pid: i64, figure: &str) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with(figure)).expect(figure);
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size")
}

/// The same in MB.
pub fn memory(pid: i64, figure: &str) -> i64 {
    kilobytes(pid, figure) / 1024
}

/// The peak private memory of a process while `body` runs, in MB. (The peak that the system reports includes
/// shared memory, so merely reading a large ring would raise it.)
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
