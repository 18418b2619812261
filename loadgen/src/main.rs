//! The `smtp-loadgen` program.
fn main() {}
