//! Named consumers: the reading side of the ring that delivers at least once, in order.
