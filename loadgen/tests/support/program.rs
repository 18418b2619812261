//! The program under test, and a directory for its files.

use std::fs;
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
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs smtp-loadgen to its end.
pub fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
        .args(arguments)
        .output()
        .unwrap()
}
