//! When the kernel runs a thread: length of its time slices.
//!
//! A thread that sleeps most of the time and has a few microseconds of work when it wakes waits, under the fair
//! scheduler, until the thread that has its core has used up its slice, which is milliseconds. One that asks for
//! shorter slices gets no more of the core, but gets it sooner (Linux 6.12 on; earlier kernels ignore it).

use std::io;

/// `struct sched_attr` of sched_setattr(2), without what deadline and utilisation hints add.
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Length of a slice under SCHED_OTHER, nanoseconds; 0: the system's.
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

#[cfg(target_os = "linux")]
const ATTRIBUTES_BYTES: u32 = size_of::<Attributes>() as u32;

/// Asks the kernel to cut the calling thread's time into slices of `slice_ns` (100 us to 100 ms are taken as they are).
/// Its priority and its share of the core stay. A thread under another policy than SCHED_OTHER is left alone. Returns
/// whether the kernel was asked and took it; one that knows no slices of a thread's own takes it without effect.
///
/// # Errors
/// Those of sched_getattr(2) and sched_setattr(2): a filter of system calls may forbid them.
#[cfg(target_os = "linux")]
pub fn shorten_slices(slice_ns: u64) -> io::Result<bool> {
    let mut attributes = attributes()?;
    if attributes.policy != libc::SCHED_OTHER as u32 {
        return Ok(false);
    }
    attributes.size = ATTRIBUTES_BYTES;
    attributes.runtime_ns = slice_ns;
    // SAFETY: the kernel reads `size` octets of a struct that lives until the call returns; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0_u32) };
    match result {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Other systems are not asked.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn shorten_slices(_slice_ns: u64) -> io::Result<bool> {
    Ok(false)
}

/// The calling thread's attributes.
#[cfg(target_os = "linux")]
fn attributes() -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes at most the octets that it is told the struct has; 0 is the calling thread.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            &raw mut attributes,
            ATTRIBUTES_BYTES,
            0_u32,
        )
    };
    match result {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn shorter_slices_change_neither_policy_nor_priority_of_a_thread() {
        let thread = std::thread::spawn(|| {
            let Ok(before) = attributes() else {
                return None;
            };
            let taken = shorten_slices(200_000);
            Some((before, taken.map_err(|e| e.raw_os_error()), attributes()))
        });
        // A sandbox may forbid both calls.
        let Some((before, taken, after)) = thread.join().unwrap() else {
            return;
        };
        if before.policy != libc::SCHED_OTHER as u32 {
            assert_eq!(taken, Ok(false));
            return;
        }
        let after = after.unwrap();
        match taken {
            Ok(asked) => {
                assert!(asked);
                // Kernels without slices of a thread's own say 0, and what they have said before.
                let known = [200_000, before.runtime_ns];
                assert!(known.contains(&after.runtime_ns), "{after:?}");
            }
            Err(errno) => assert_eq!(errno, Some(libc::EPERM)),
        }
        assert_eq!(
            Attributes {
                runtime_ns: before.runtime_ns,
                ..after
            },
            before
        );
    }
}
