//! A file system that fills up quickly.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

pub struct SmallDisk {
    pub dir: PathBuf,
}

impl SmallDisk {
    /// None if it cannot be mounted: only root may do that.
    pub fn mount(size: &str) -> Option<SmallDisk> {
        let dir = std::env::temp_dir().join(format!("presence.disk.{}", std::process::id()));
        std::fs::create_dir(&dir).expect("a directory");
        let disk = SmallDisk { dir };
        let options = format!("size={size},mode=777");
        let mounted =
            disk.run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"]) && disk.run("chown", &["postgres:"]);
        mounted.then_some(disk)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        Command::new(program).args(arguments).arg(&self.dir).status().is_ok_and(|status| status.success())
    }

    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.dir.join("filler")).expect("a file");
        let zeroes = [0; 1 << 16];
        while filler.write_all(&zeroes).is_ok() {}
    }

    pub fn free(&self) {
        std::fs::remove_file(self.dir.join("filler")).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.run("umount", &["-l"]);
        let _ = std::fs::remove_dir(&self.dir);
    }
}
