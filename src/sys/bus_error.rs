//! What happens when a mapped file loses its bytes: it was cut short, or its disk failed.

use std::ptr;
use std::sync::Once;

extern "C" fn on_bus_error(_signal: libc::c_int) {
    let text = b"ringmx: the ring file was cut short or cannot be read from its disk\n";
    // SAFETY: write(2) and _exit(2) are async-signal-safe.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(74);
    }
}

/// From now on a bus error (SIGBUS) ends the process with a message and exit code 74. For tools
/// that read a ring through a map; later calls do nothing.
pub fn exit_on_bus_error() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all-zero is a valid sigaction; the handler is async-signal-safe. A failure leaves
        // the default, which ends the process without a message.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_bus_error as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    });
}
