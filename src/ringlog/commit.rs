//! See `docs/ring-log.md`; filled in next.
