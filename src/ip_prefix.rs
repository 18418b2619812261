//! Networks as operators write them: an address and how many of its leading bits count (CIDR, RFC 4632 3.1).
//!
//! Promises: IPv4 and IPv6 never match each other, but for addresses `::ffff:a.b.c.d`, which are IPv4 here wherever
//! they come from, because a socket for both families shows IPv4 clients that way. A prefix says exactly what it
//! covers: bits behind its length are an error, which shows the two prefixes that may have been meant.
//! Does not: look up names, or keep a list (see `policy::networks`).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// Bits of an IPv4 address.
pub const V4_BITS: u8 = 32;
/// Bits of an IPv6 address.
pub const V6_BITS: u8 = 128;
/// Bits in front of the IPv4 address in `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
const MAPPED_BITS: u8 = V6_BITS - V4_BITS;

/// A network: all addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    /// INVARIANT: never `::ffff:a.b.c.d`; bits behind `bits` are 0.
    address: IpAddr,
    /// INVARIANT: at most 32 for an IPv4 address, at most 128 for an IPv6 address.
    bits: u8,
}

/// Why a text is no [`IpPrefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpPrefixError {
    /// What stands in front of the slash is no address.
    Address,
    /// What stands behind the slash is no number of bits that such an address has.
    Length {
        /// Bits of the address.
        most: u8,
    },
    /// Bits behind the length are set.
    HostBits {
        /// The network that the address is in.
        network: IpPrefix,
        /// The address alone.
        address: IpPrefix,
    },
}

impl fmt::Display for IpPrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpPrefixError::Address => f.write_str(
                "not a network; allowed: an IP address, or one with the number of bits that count, such as \
                 192.0.2.0/24 or 2001:db8::/32 (names are not looked up)",
            ),
            IpPrefixError::Length { most } => {
                write!(f, "the number of bits behind / must be 0 to {most}, such as /{most}")
            }
            IpPrefixError::HostBits { network, address } => write!(
                f,
                "bits behind the length are set; write {network} for the network or {address} for the one address"
            ),
        }
    }
}

impl core::error::Error for IpPrefixError {}

impl IpPrefix {
    /// The network of `bits` bits that `address` is in; bits behind them are dropped. More bits than the address
    /// has count as all of them. A mapped address gives an IPv4 network of up to 32 bits.
    pub fn of(address: IpAddr, bits: u8) -> IpPrefix {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let bits = bits.min(V4_BITS);
                let mask = u32::MAX.checked_shl(u32::from(V4_BITS - bits)).unwrap_or(0);
                IpPrefix {
                    address: IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask)),
                    bits,
                }
            }
            IpAddr::V6(v6) => {
                let bits = bits.min(V6_BITS);
                let mask = u128::MAX
                    .checked_shl(u32::from(V6_BITS - bits))
                    .unwrap_or(0);
                IpPrefix {
                    address: IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask)),
                    bits,
                }
            }
        }
    }

    /// The network of this one address.
    pub fn single(address: IpAddr) -> IpPrefix {
        IpPrefix::of(address, V6_BITS)
    }

    /// Whether `address` is in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                IpPrefix::of(address, self.bits).address == self.address
            }
            _ => false,
        }
    }

    /// First address of the network.
    pub fn first(&self) -> IpAddr {
        self.address
    }

    /// Last address of the network.
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => {
                let rest = u32::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(v4) | rest))
            }
            IpAddr::V6(v6) => {
                let rest = u128::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) | rest))
            }
        }
    }

    /// Leading bits that count: 0 to 32, or 0 to 128.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl fmt::Display for IpPrefix {
    /// `ADDRESS/BITS`, the bits also where all of them count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for IpPrefix {
    type Err = IpPrefixError;

    /// Reads `ADDRESS` or `ADDRESS/BITS`.
    ///
    /// # Errors
    /// Anything else, leading zeros and bits behind the length included.
    fn from_str(text: &str) -> Result<IpPrefix, IpPrefixError> {
        let (address_text, bits_text) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let written: IpAddr = address_text.parse().map_err(|_| IpPrefixError::Address)?;
        let most = match written {
            IpAddr::V4(_) => V4_BITS,
            IpAddr::V6(_) => V6_BITS,
        };
        let Some(bits_text) = bits_text else {
            return Ok(IpPrefix::single(written));
        };
        let bits = length(bits_text)
            .filter(|bits| *bits <= most)
            .ok_or(IpPrefixError::Length { most })?;
        let is_mapped = written.is_ipv6() && written.to_canonical().is_ipv4();
        let prefix = if !is_mapped {
            IpPrefix::of(written, bits)
        } else if bits >= MAPPED_BITS {
            IpPrefix::of(written, bits - MAPPED_BITS)
        } else {
            // A network around all mapped addresses would be one of IPv6 that contains none of them.
            return Err(IpPrefixError::HostBits {
                network: IpPrefix::of(written, 0),
                address: IpPrefix::single(written),
            });
        };
        if prefix.address != written.to_canonical() {
            return Err(IpPrefixError::HostBits {
                network: prefix,
                address: IpPrefix::single(written),
            });
        }
        Ok(prefix)
    }
}

/// A decimal number without sign and leading zeros.
fn length(text: &str) -> Option<u8> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let has_zero_in_front = text.len() > 1 && text.starts_with('0');
    if !is_plain || has_zero_in_front {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> IpPrefix {
        text.parse().expect("a prefix")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_prefix_is_shown_as_it_is_written() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "192.0.2.0/24",
            "192.0.2.128/25",
            "192.0.2.7/32",
            "::/0",
            "2001:db8::/32",
            "fe80::/10",
            "2001:db8::1/128",
        ] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("192.0.2.7").to_string(), "192.0.2.7/32");
        assert_eq!(prefix("2001:DB8::1").to_string(), "2001:db8::1/128");
    }

    #[test]
    fn a_prefix_contains_its_first_and_its_last_address_and_neither_neighbour() {
        for (text, inside, outside) in [
            (
                "192.0.2.0/24",
                ["192.0.2.0", "192.0.2.255"],
                ["192.0.1.255", "192.0.3.0"],
            ),
            (
                "192.0.2.8/31",
                ["192.0.2.8", "192.0.2.9"],
                ["192.0.2.7", "192.0.2.10"],
            ),
            (
                "192.0.2.8",
                ["192.0.2.8", "::ffff:192.0.2.8"],
                ["192.0.2.7", "::192.0.2.8"],
            ),
            (
                "2001:db8::/33",
                ["2001:db8::", "2001:db8:7fff:ffff:ffff:ffff:ffff:ffff"],
                ["2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:8000::"],
            ),
        ] {
            let prefix = prefix(text);
            for inside in inside {
                assert!(prefix.contains(address(inside)), "{inside} is in {text}");
            }
            for outside in outside {
                assert!(
                    !prefix.contains(address(outside)),
                    "{outside} is not in {text}"
                );
            }
            assert_eq!(prefix.first(), address(inside[0]).to_canonical());
            assert_eq!(prefix.last(), address(inside[1]).to_canonical());
        }
    }

    #[test]
    fn the_widest_prefixes_contain_one_family_each() {
        let (v4, v6) = (prefix("0.0.0.0/0"), prefix("::/0"));
        for text in ["0.0.0.0", "255.255.255.255", "::ffff:10.0.0.1"] {
            assert!(
                v4.contains(address(text)) && !v6.contains(address(text)),
                "{text}"
            );
        }
        for text in ["::", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(
                v6.contains(address(text)) && !v4.contains(address(text)),
                "{text}"
            );
        }
        assert_eq!(v4.last(), address("255.255.255.255"));
        assert_eq!(
            v6.last(),
            address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        );
    }

    #[test]
    fn a_mapped_prefix_is_one_of_ipv4() {
        assert_eq!(prefix("::ffff:192.0.2.0/120"), prefix("192.0.2.0/24"));
        assert_eq!(prefix("::ffff:0.0.0.0/96"), prefix("0.0.0.0/0"));
        assert_eq!(prefix("::ffff:192.0.2.1"), prefix("192.0.2.1"));
        assert_eq!(
            IpPrefix::of(address("::ffff:192.0.2.1"), 24),
            prefix("192.0.2.0/24")
        );
        let refused = "::ffff:0.0.0.0/95".parse::<IpPrefix>();
        assert_eq!(
            refused,
            Err(IpPrefixError::HostBits {
                network: prefix("0.0.0.0/0"),
                address: prefix("0.0.0.0/32"),
            })
        );
    }

    #[test]
    fn bits_behind_the_length_are_an_error_that_shows_what_may_have_been_meant() {
        for (text, said) in [
            (
                "192.0.2.1/24",
                "bits behind the length are set; write 192.0.2.0/24 for the network or 192.0.2.1/32 for the one \
                 address",
            ),
            (
                "2001:db8::1/64",
                "bits behind the length are set; write 2001:db8::/64 for the network or 2001:db8::1/128 for the \
                 one address",
            ),
            (
                "::ffff:192.0.2.1/120",
                "bits behind the length are set; write 192.0.2.0/24 for the network or 192.0.2.1/32 for the one \
                 address",
            ),
        ] {
            let error = text.parse::<IpPrefix>().expect_err(text);
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in [
            "",
            "/",
            "/24",
            "localhost",
            "192.0.2",
            "192.0.2.0.0",
            "192.0.2.256",
            "192.0.2.00",
            "1 92.0.2.0",
            " 192.0.2.0",
            "192.0.2.0 /24",
            "2001:db8",
            "2001:db8:::",
            "[::1]",
            "fe80::1%eth0",
            "0x7f.0.0.1",
        ] {
            assert_eq!(
                text.parse::<IpPrefix>(),
                Err(IpPrefixError::Address),
                "{text:?}"
            );
        }
        for length in [
            "",
            "33",
            "+8",
            "-1",
            "08",
            "00",
            "8 ",
            "8/8",
            "256",
            "4294967304",
            "\u{661}",
        ] {
            let text = format!("0.0.0.0/{length}");
            assert_eq!(
                text.parse::<IpPrefix>(),
                Err(IpPrefixError::Length { most: 32 }),
                "{text:?}"
            );
        }
        assert_eq!(
            "::/129".parse::<IpPrefix>(),
            Err(IpPrefixError::Length { most: 128 })
        );
    }
}
