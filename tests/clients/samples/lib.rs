//! Holds no code: the manifest beside it names crates whose sample messages the tests send.
