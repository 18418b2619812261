//! Runs against receivers: ringmx, Postfix with its smtp-sink, Exim, OpenSMTPD, and Python's
//! aiosmtpd, and through Postfix and Exim into ringmx. Each run has to end VALID, and what the
//! receiver stored has to be what the ledger says. A program that is not installed is skipped, and says so by name.

mod aiosmtpd;
mod exim;
mod opensmtpd;
mod postfix;
mod relay;
mod ringmx;
mod support;
