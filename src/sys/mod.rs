//! .
pub mod fd_passing;
pub mod wait;
