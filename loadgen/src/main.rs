//! The `smtp-loadgen` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    smtp_loadgen::cli::main()
}
