//! The only unsafe code: thin, safe wrappers of what `std` does not offer.
#![allow(unsafe_code, reason = "this module exists to hold it")]

pub mod file;
pub mod mmap;
