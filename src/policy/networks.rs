//! Sets of networks: which clients may connect, and which are exempt from limits.
//!
//! Promises: a lookup is one binary search over ranges that neither touch nor overlap, whatever the order and the
//! overlaps of what was added; no lookup allocates.
//! A radix tree would answer in as many steps as an address has bits, with a cache miss for each; the ranges of
//! 100,000 IPv4 networks fit into 800 KB and are found in 17 steps.
//!
//! Memory: 8 bytes for a network of IPv4, 32 bytes for one of IPv6.

use core::net::IpAddr;

use crate::ip_prefix::IpPrefix;

/// A set of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// INVARIANT: sorted, first <= last, and at least one address between a range and the next.
    v4: Box<[(u32, u32)]>,
    /// INVARIANT: as `v4`.
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    /// The set of all addresses in any of these networks.
    pub fn new(prefixes: impl IntoIterator<Item = IpPrefix>) -> Networks {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match (prefix.first(), prefix.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.into(), last.into())),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.into(), last.into())),
                // INVARIANT: both ends of a network are of its family.
                _ => {}
            }
        }
        Networks {
            v4: merged(v4, |last: u32| last.checked_add(1)),
            v6: merged(v6, |last: u128| last.checked_add(1)),
        }
    }

    /// Whether `address` is in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => covers(&self.v4, v4.into()),
            IpAddr::V6(v6) => covers(&self.v6, v6.into()),
        }
    }

    /// Whether no address is in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// The ranges sorted, those that touch or overlap made one.
fn merged<T: Copy + Ord>(mut ranges: Vec<(T, T)>, after: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            // Nothing lies behind the last address of all: the range before swallows this one.
            Some((_, end)) if after(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out.into_boxed_slice()
}

fn covers<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind
        .checked_sub(1)
        .and_then(|at| ranges.get(at))
        .is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefixes: &[&str]) -> Networks {
        Networks::new(prefixes.iter().map(|text| text.parse().expect("a prefix")))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_empty_set_contains_nobody() {
        let nobody = Networks::default();
        assert!(nobody.is_empty());
        assert!(!nobody.contains(address("127.0.0.1")) && !nobody.contains(address("::1")));
    }

    #[test]
    fn networks_that_touch_or_overlap_become_one_range() {
        let networks = set(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25", "10.0.3.0/24"]);
        assert_eq!(
            *networks.v4,
            [(0x0a00_0000, 0x0a00_01ff), (0x0a00_0300, 0x0a00_03ff)]
        );
        let all = set(&[
            "128.0.0.0/1",
            "0.0.0.0/1",
            "255.255.255.255",
            "::/0",
            "ffff::/16",
        ]);
        assert_eq!(*all.v4, [(0, u32::MAX)]);
        assert_eq!(*all.v6, [(0, u128::MAX)]);
    }

    #[test]
    fn a_mapped_address_is_looked_up_as_ipv4() {
        let networks = set(&["192.0.2.0/24"]);
        assert!(networks.contains(address("::ffff:192.0.2.7")));
        assert!(!networks.contains(address("::192.0.2.7")));
    }

    #[test]
    fn a_set_agrees_with_asking_each_network() {
        let mut state = 42_u64;
        let mut next = move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state >> 33
        };
        for _ in 0..200 {
            let prefixes: Vec<IpPrefix> = (0..next() % 40)
                .map(|_| {
                    // Few addresses, so that networks meet.
                    let low = next() % 512;
                    if next() % 2 == 0 {
                        let bits = 22 + (next() % 11) as u8;
                        IpPrefix::of(IpAddr::V4((low as u32).into()), bits)
                    } else {
                        let bits = 118 + (next() % 11) as u8;
                        IpPrefix::of(IpAddr::V6(u128::from(low).into()), bits)
                    }
                })
                .collect();
            let networks = Networks::new(prefixes.iter().copied());
            for low in 0..1_100_u32 {
                for address in [IpAddr::V4(low.into()), IpAddr::V6(u128::from(low).into())] {
                    let expected = prefixes.iter().any(|prefix| prefix.contains(address));
                    assert_eq!(
                        networks.contains(address),
                        expected,
                        "{address} in {prefixes:?}"
                    );
                }
            }
        }
    }
}
