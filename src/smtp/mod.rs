//! SMTP as the receiver speaks it (RFC 5321 and its extensions), without sockets, files or clocks.
//!
//! [`session::Session`] takes bytes, verdicts, commit results and a time; it gives replies, body slices and
//! requests to a [`sink::Sink`].

pub mod command;
pub mod data;
pub mod extension;
pub mod hops;
pub mod parameter;
pub mod path;
pub mod reply;
pub mod sasl;
pub mod session;
pub mod sink;
pub mod trace;
pub mod xclient;
