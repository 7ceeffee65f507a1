//! Controllable clocks for one server: the wall clock and the boot clock, independently (`clock.c`).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub struct Clock {
    dir: PathBuf,
    file: File,
    /// Offsets in microseconds: wall clock, boot clock.
    offsets: Mutex<[i64; 2]>,
}

impl Clock {
    pub fn new() -> Clock {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("presence.clock.{}.{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a directory for the clock");
        // The server's user reads the library and the offsets.
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("its permissions");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client/common/clock.c");
        let library = dir.join("clock.so");
        let compiled =
            Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        assert!(
            compiled.is_ok_and(|status| status.success()),
            "cc could not compile tests/client/common/clock.c"
        );
        let file = dir.join("offsets");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(file)
            .expect("a file");
        file.write_all(&[0; 16]).expect("offsets");
        Clock { dir, file, offsets: Mutex::new([0; 2]) }
    }

    /// The environment variables that the server needs.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.dir.join("clock.so")), ("PRESENCE_TEST_CLOCK", self.dir.join("offsets"))]
    }

    /// Advances all clocks.
    pub fn pass(&self, time: Duration) {
        let microseconds = time.as_micros() as i64;
        self.change(|[wall, boot]| [wall + microseconds, boot + microseconds]);
    }

    /// Steps the wall clock only.
    pub fn step_wall(&self, seconds: i64) {
        self.change(|[wall, boot]| [wall + seconds * 1_000_000, boot]);
    }

    fn change(&self, new: impl FnOnce([i64; 2]) -> [i64; 2]) {
        let mut offsets = self.offsets.lock().expect("nobody panics in here");
        *offsets = new(*offsets);
        for (place, offset) in offsets.iter().enumerate() {
            self.file.write_all_at(&offset.to_ne_bytes(), place as u64 * 8).expect("the clock's file");
        }
    }

    /// The server's wall clock, in microseconds since 1970.
    pub fn wall(&self) -> i64 {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as i64;
        real + self.offsets.lock().expect("nobody panics in here")[0]
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
