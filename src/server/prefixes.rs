//! How many large chunks the messages of each client prefix hold: no prefix may hold more than a quarter of the
//! pool, so that one network can't starve the others. Beyond its share one of its messages at a time may still grow,
//! so that some message of each prefix always ends.
//!
//! The table is fixed in size. Prefixes that share a bucket share its limit, which only makes it stricter; the
//! hash is keyed with a number from outside, so that nobody can aim at another's bucket.

use core::net::IpAddr;

/// Buckets of the table.
const BUCKETS: usize = 4_096;

const NONE: u32 = u32::MAX;

/// The table.
pub(super) struct Prefixes {
    held: Box<[u32]>,
    /// Key of the connection that may grow beyond the share of its prefix.
    growers: Box<[u32]>,
    chunks_max: u32,
    key: u64,
}

impl Prefixes {
    /// A table in which each prefix may hold `chunks_max` chunks; `key` is a secret of this process.
    pub(super) fn new(chunks_max: u32, key: u64) -> Prefixes {
        Prefixes {
            held: vec![0; BUCKETS].into_boxed_slice(),
            growers: vec![NONE; BUCKETS].into_boxed_slice(),
            chunks_max,
            key,
        }
    }

    /// The bucket of a client: its IPv4 address, or the first 64 bits of its IPv6 address.
    pub(super) fn bucket(&self, client: IpAddr) -> u16 {
        let prefix = match client.to_canonical() {
            IpAddr::V4(address) => u64::from(u32::from(address)),
            IpAddr::V6(address) => (u128::from(address) >> 64) as u64 | 1 << 63,
        };
        // The finalizer of SplitMix64: every bit of the input reaches every bit of the result.
        let mut mixed = prefix ^ self.key;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % BUCKETS as u64) as u16
    }

    /// The connection `key` of this bucket held `before` chunks and holds `now`.
    pub(super) fn changed(&mut self, bucket: u16, key: u32, before: u32, now: u32) {
        let index = usize::from(bucket);
        self.held[index] = self.held[index] - before + now;
        if now == 0 && self.growers[index] == key {
            self.growers[index] = NONE;
        } else if self.held[index] > self.chunks_max && now > before && self.growers[index] == NONE
        {
            self.growers[index] = key;
        }
    }

    /// Whether the connection `key` of this bucket may take one more chunk.
    pub(super) fn may_take(&self, bucket: u16, key: u32) -> bool {
        let index = usize::from(bucket);
        self.held[index] < self.chunks_max
            || self.growers[index] == NONE
            || self.growers[index] == key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_share_a_limit() {
        let mut prefixes = Prefixes::new(3, 7);
        let bucket = |text: &str| prefixes.bucket(text.parse().expect("address"));
        let (a, b, c) = (
            bucket("2001:db8::1"),
            bucket("2001:db8::2"),
            bucket("::ffff:192.0.2.1"),
        );
        assert_eq!(a, b);
        assert_eq!(c, bucket("192.0.2.1"));
        prefixes.changed(a, 1, 0, 2);
        assert!(prefixes.may_take(b, 2));
        prefixes.changed(b, 2, 0, 1);
        // The share is taken; the first that asks becomes the one that may go on.
        assert!(prefixes.may_take(a, 1) && prefixes.may_take(b, 2));
        prefixes.changed(b, 2, 1, 2);
        assert!(!prefixes.may_take(a, 1) && prefixes.may_take(b, 2));
        prefixes.changed(b, 2, 2, 0);
        assert!(prefixes.may_take(a, 1));
    }
}
