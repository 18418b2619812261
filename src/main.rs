//! The `ringmx` program.
fn main() {}
