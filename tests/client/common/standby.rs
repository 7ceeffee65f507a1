//! A streaming standby of a private server.

use super::{Cluster, Session, shell, until};
use std::path::{Path, PathBuf};

/// Stops and deletes the standby on drop.
pub struct Standby {
    dir: PathBuf,
}

impl Standby {
    /// Creates a standby that follows the primary and accepts connections. It has the settings of its
    /// primary.
    pub fn of(cluster: &Cluster) -> Standby {
        let standby = Standby { dir: cluster.with_extension("s") };
        shell(
            "mkdir -m 700 \"$2\"; if [ \"$(id -u)\" = 0 ]; then chown postgres: \"$2\"; fi; cd \"$2\"
             as_server \"$bin/pg_basebackup\" -h \"$1\" -U postgres -D \"$2/data\" -R -c fast
             echo \"unix_socket_directories = '$2'\" >>\"$2/data/postgresql.conf\"
             as_server \"$bin/pg_ctl\" -D \"$2/data\" -s -w -l \"$2/log\" start",
            &[cluster, &standby.dir],
        );
        standby
    }

    pub fn user(&self, user: &str) -> Session {
        Session::open(&self.dir, user, "app")
    }

    pub fn service(&self) -> Session {
        self.user("postgres")
    }

    pub fn promote(&self) {
        shell("cd \"$1\"; as_server \"$bin/pg_ctl\" -D \"$1/data\" -s -w promote", &[&self.dir]);
    }

    pub fn stop(&self, mode: &str) {
        let stop = "cd \"$1\"; as_server \"$bin/pg_ctl\" -D \"$1/data\" -s -w -m \"$2\" stop";
        shell(stop, &[&self.dir, Path::new(mode)]);
    }

    /// Waits until it has replayed everything that the primary has written so far.
    pub fn until_caught_up(&self, primary: &mut Session) {
        let end = primary.value("select pg_current_wal_insert_lsn()");
        let mut own = self.service();
        let has_it = format!("select pg_last_wal_replay_lsn() >= '{end}'");
        until("the standby has everything", || own.is(&has_it));
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the end of the standby's log:\n{}",
                lines[lines.len().saturating_sub(25)..].join("\n")
            );
        }
        let _ = super::try_shell(
            "cd \"$1\"; as_server \"$bin/pg_ctl\" -D \"$1/data\" -s -m immediate stop; rm -rf \"$1\"",
            &[&self.dir],
        );
    }
}

impl AsRef<Path> for Standby {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}
