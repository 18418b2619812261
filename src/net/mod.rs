//! Sockets and the event loop: the only code that names mio.

pub mod desk;
pub mod listener;
pub mod reactor;
pub mod stream;
