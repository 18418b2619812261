//! The only unsafe code: thin, safe wrappers of what `std` does not offer.
#![allow(unsafe_code, reason = "this module exists to hold it")]

pub mod bus_error;
pub mod counting;
pub mod crc;
pub mod descriptors;
pub mod fd_passing;
pub mod file;
pub mod group;
pub mod memory;
pub mod mmap;
pub mod privileges;
pub mod process;
pub mod scan;
pub mod schedule;
pub mod signal;
pub mod socket;
pub mod wait;

/// Where the C library keeps this thread's errno.
fn errno_place() -> *mut libc::c_int {
    // SAFETY: takes nothing; the place is valid for as long as the thread lives.
    #[cfg(target_os = "linux")]
    return unsafe { libc::__errno_location() };
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    return unsafe { libc::__error() };
}
