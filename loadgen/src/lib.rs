//! `smtp-loadgen`: an SMTP load generator that says whether it was you or the target.
//!
//! The client machine (`client`, `reply`, `message`) does no IO and shares no code with the
//! receiver in this repository: a tool that shares the parser of the server cannot find its
//! faults.

pub mod base64;
pub mod ceiling;
pub mod cli;
pub mod client;
pub mod compare;
pub mod corpus;
pub mod formats;
pub mod handover;
pub mod hdr;
pub mod help;
pub mod hostile;
pub mod html;
pub mod ledger;
pub mod lines;
pub mod live;
pub mod message;
pub mod plan;
pub mod preflight;
pub mod probe;
pub mod processes;
pub mod profile;
pub mod raw;
pub mod recorder;
pub mod reply;
pub mod report;
pub mod rng;
pub mod run;
pub mod search;
pub mod sink;
pub mod smtp_source;
pub mod sys;
pub mod tls;
pub mod trace;
pub mod verdict;
pub mod verify;
pub mod wire;
pub mod worker;
