//! Sockets and the event loop: the only code that names mio.

pub mod listener;
