//! Sockets and the event loop: the only code that names mio.

pub mod desk;
pub mod handover;
pub mod listener;
mod pages;
pub mod reactor;
pub mod stream;
pub mod supervisor;
