//! The life of a server process.

/// Runs a server until it is told to stop; the exit code.
pub fn serve(_config: crate::config::Config) -> i32 {
    crate::cli::fail("serve: not available in this version")
}
