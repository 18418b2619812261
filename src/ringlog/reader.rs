//! Reading records from the ring.
