//! `ringmx` receives mail: one thread runs a reactor on `mio`, every accepted message is appended to a
//! ring log, consumers read the log.
//!
//! A module may use only lower layers; `docs/architecture.md` draws them and `tests/tidy.rs` holds them.

// L0: vocabulary and containers, no I/O.
pub mod base64;
pub mod checksum;
mod choice;
pub mod clock;
pub mod envelope;
pub mod ip_prefix;
pub mod limits;
pub mod logger;
pub mod metrics;
pub mod offload;
pub mod timer_wheel;
pub mod users;
// L1: the only unsafe code, and what lies in its memory.
pub mod buffer;
pub mod message;
pub mod sys;
// L2: pure; bytes and events in, bytes and events out.
pub mod ctl;
pub mod http;
pub mod link;
pub mod policy;
pub mod proxy_protocol;
pub mod ringlog;
pub mod smtp;
// L3: generic over stream and storage.
pub mod conn;
pub mod server;
pub mod status;
pub mod tls;
// L4: the only code that names mio.
pub mod net;
// L5: process life.
pub mod cli;
pub mod config;
pub mod conformance;
pub mod consume;
pub mod daemon;
pub mod demo;
pub mod log_cli;
pub mod ring_cli;
pub mod send;
pub mod users_cli;
