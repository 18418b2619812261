//! The program under test, and a directory for its files.

use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};

/// A directory of one test; gone with this value.
pub struct Place(pub PathBuf);

impl Place {
    /// Makes it, empty. `name` is no other test's.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loadgen-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Returns the path of a file in it.
    pub fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes `text` into a file of this name, in folders that are made for it; returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Makes a folder in it and returns its path.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns smtp-loadgen with these arguments, ready to be started.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"));
    command.args(arguments);
    command
}

/// Runs smtp-loadgen to its end.
pub fn program(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Returns the report in the file at `path`.
pub fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns what a report counts: attempted, accepted, deferred, rejected, failed, unsent.
pub fn totals(report: &Value) -> [u64; 6] {
    [
        "attempted",
        "accepted",
        "deferred",
        "rejected",
        "failed",
        "unsent",
    ]
    .map(|name| report["totals"][name].as_u64().unwrap())
}

/// Returns a loopback address on which nothing listens: one that was free a moment ago.
pub fn address_without_listener() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
