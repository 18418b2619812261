//! What each client has used up lately: sessions, connections, messages, recipients, octets and handshakes, of its
//! own address and of the network around it.
//!
//! Promises: fixed memory, no allocation after [`ClientTable::new`]; every operation looks at [`WAYS`] entries of the
//! table at most, for the client and again for its network, however many clients there are; the hash is keyed, so that
//! nobody can aim at another's entries. Time comes as an argument.
//! Does not: know replies or sessions, or decide who is exempt.
//!
//! **Whose.** A client is an IPv4 address or an IPv6 /64 (RFC 6177: the least a site has); its network is the /24 or
//! the /48 around it, which may use [`ClientLimits::network_factor`] times as much.
//!
//! **Rates.** A token bucket for each: a limit of N holds N tokens, full at first, and gains N in [`PERIOD_NS`],
//! continuously. What costs more tokens than there are is refused and takes none. So N may come at once, at most 2N
//! in any period, and N a period for ever. One number is kept for each bucket, the time at which it will be full: a
//! bucket whose time is past is full, one whose time is a period ahead is empty. When a limit changes, a bucket keeps
//! the share it is filled to. Divisions round in the client's favour, by less than a token in a period.
//!
//! **Eviction.** An entry can stand in two buckets of [`BUCKET`] places (two choices, Azar et al.). Where all are
//! taken, the one that is full again soonest gives way: it says the least, and somebody who comes back is treated as
//! new. One with an open session never gives way. Where all have one, the client is not tracked, let in and counted;
//! with four places for each session that can be, chance does not do that, and nobody can aim.

use core::hash::Hasher;
use core::net::IpAddr;

use crate::clock::Instant;
use crate::metrics::{Limited, Scope};

/// Time in which an empty bucket fills, nanoseconds: rates are per minute.
pub const PERIOD_NS: u64 = 60_000_000_000;
/// Entries of a bucket; they are next to each other in memory.
pub const BUCKET: usize = 8;
/// Entries that a client can be found in.
pub const WAYS: usize = 2 * BUCKET;
/// Fewest entries of a table.
pub const ENTRIES_MIN: usize = 65_536;
/// Entries for each session that can be: one for the client, one for its network, and as many free ones twice over.
pub const ENTRIES_PER_SESSION: usize = 8;
/// What has been used beyond a limit is held against a client for this long at most, nanoseconds.
pub const DEBT_NS_MAX: u64 = 60 * PERIOD_NS;

/// What is counted in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rate {
    /// Connections taken.
    Connections,
    /// MAIL commands.
    Messages,
    /// RCPT commands, refused ones included.
    Recipients,
    /// Octets that came.
    Bytes,
    /// TLS handshakes begun.
    Handshakes,
}

impl Rate {
    /// Number of rates.
    pub const COUNT: usize = 5;

    /// The limit that a rate has.
    pub fn limited(self) -> Limited {
        match self {
            Rate::Connections => Limited::Connections,
            Rate::Messages => Limited::Messages,
            Rate::Recipients => Limited::Recipients,
            Rate::Bytes => Limited::Bytes,
            Rate::Handshakes => Limited::Handshakes,
        }
    }
}

/// A limit with its two values. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Ordinarily.
    pub normal: u64,
    /// While the server is under stress.
    pub stress: u64,
}

impl Limit {
    /// The value in force; `None`: no limit.
    pub fn value(self, is_stressed: bool) -> Option<u64> {
        let value = if is_stressed {
            self.stress
        } else {
            self.normal
        };
        (value > 0).then_some(value)
    }
}

/// What a client may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// Sessions at the same time.
    pub sessions: Limit,
    /// Of each rate, in the order of [`Rate`], in a period.
    pub rates: [Limit; Rate::COUNT],
    /// A network may use this times what a client may; 0 is no limit for networks.
    pub network_factor: u64,
}

/// Which limit of whom something is beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The limit.
    pub limited: Limited,
    /// Of the client, or of its network.
    pub scope: Scope,
}

/// Where a client with an open session, and its network, stand in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    client: u32,
    network: u32,
}

impl Places {
    /// Nowhere.
    pub const NONE: Places = Places {
        client: NOWHERE,
        network: NOWHERE,
    };
}

const NOWHERE: u32 = u32::MAX;

/// A client or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    /// The bits that count, in front.
    prefix: u64,
    /// Family and length; 0 for no name.
    kind: u8,
}

impl Name {
    const NOBODY: Name = Name { prefix: 0, kind: 0 };

    /// The client's own, and its network's.
    fn of(client: IpAddr) -> (Name, Name) {
        let name = |prefix, kind| Name { prefix, kind };
        match client.to_canonical() {
            IpAddr::V4(v4) => {
                let bits = u64::from(u32::from(v4));
                (name(bits, 1), name(bits & !0xff, 2))
            }
            IpAddr::V6(v6) => {
                let bits = (u128::from(v6) >> 64) as u64;
                (name(bits, 3), name(bits & !0xffff, 4))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    /// Open ones.
    sessions: u32,
    /// When the bucket of each rate is full, nanoseconds of the monotonic clock.
    full_at: [u64; Rate::COUNT],
}

impl Entry {
    const EMPTY: Entry = Entry {
        name: Name::NOBODY,
        sessions: 0,
        full_at: [0; Rate::COUNT],
    };

    /// When it says nothing any more.
    fn relevant_until(&self) -> u64 {
        self.full_at.iter().copied().max().unwrap_or(0)
    }
}

/// The table.
pub struct ClientTable {
    entries: Box<[Entry]>,
    /// INVARIANT: the number of buckets less one, and that number is a power of two.
    mask: usize,
    keys: (u64, u64),
    limits: ClientLimits,
    is_stressed: bool,
    evictions: u64,
    untracked: u64,
    #[cfg(test)]
    looked_at: core::cell::Cell<u64>,
}

impl ClientTable {
    /// An empty table for `sessions_max` sessions; `keys` are secrets of this process.
    pub fn new(sessions_max: usize, keys: (u64, u64), limits: ClientLimits) -> ClientTable {
        let entries = ClientTable::entries_for(sessions_max);
        ClientTable {
            entries: vec![Entry::EMPTY; entries].into_boxed_slice(),
            mask: entries / BUCKET - 1,
            keys,
            limits,
            is_stressed: false,
            evictions: 0,
            untracked: 0,
            #[cfg(test)]
            looked_at: core::cell::Cell::new(0),
        }
    }

    /// Memory of a table for `sessions_max` sessions, bytes.
    pub fn memory_bytes(sessions_max: usize) -> u64 {
        (ClientTable::entries_for(sessions_max) * size_of::<Entry>()) as u64
    }

    fn entries_for(sessions_max: usize) -> usize {
        (sessions_max * ENTRIES_PER_SESSION)
            .max(ENTRIES_MIN)
            .next_power_of_two()
    }

    /// Puts the limits for stress in force, or the ordinary ones.
    pub fn set_stress(&mut self, is_stressed: bool) {
        self.is_stressed = is_stressed;
    }

    /// Times that a client had to give way to another.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Connections of clients that found no place.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Open sessions, each counted for its client and for its network. Looks at the whole table: for tests and pages.
    pub fn sessions(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| u64::from(entry.sessions))
            .sum()
    }

    /// Counts a connection and opens a session. Follow it with [`ClientTable::disconnect`].
    ///
    /// # Errors
    /// A limit on sessions or connections; then neither is counted.
    pub fn connect(&mut self, client: IpAddr, now: Instant) -> Result<Places, Refused> {
        let (client, network) = Name::of(client);
        let client = self.open(client, now);
        // What has a session open can't give way to the other.
        let network = self.open(network, now);
        let places = Places { client, network };
        if client == NOWHERE || network == NOWHERE {
            self.untracked += 1;
        }
        let admitted = self
            .admit_session(places)
            .and_then(|()| self.admit(places, Rate::Connections, 1, now));
        if admitted.is_err() {
            self.disconnect(places);
        }
        admitted.map(|()| places)
    }

    /// Closes the session that [`ClientTable::connect`] opened.
    pub fn disconnect(&mut self, places: Places) {
        for place in [places.client, places.network] {
            if let Some(entry) = self.entries.get_mut(place as usize) {
                entry.sessions = entry.sessions.saturating_sub(1);
            }
        }
    }

    /// Takes `cost` from the bucket of this rate.
    ///
    /// # Errors
    /// There is less in it, in that of the client or in that of its network; then nothing was taken from either.
    pub fn admit(
        &mut self,
        places: Places,
        rate: Rate,
        cost: u64,
        now: Instant,
    ) -> Result<(), Refused> {
        let mut full_at = [0; 2];
        for ((place, scope), at) in places.scopes().zip(&mut full_at) {
            let (Some(entry), Some(limit)) = (self.entry(place), self.rate_limit(rate, scope))
            else {
                continue;
            };
            *at = later(entry.full_at[rate as usize], cost, limit, now);
            if *at > now.0.saturating_add(PERIOD_NS) {
                let limited = rate.limited();
                return Err(Refused { limited, scope });
            }
        }
        for ((place, _), at) in places.scopes().zip(full_at) {
            if let Some(entry) = self.entries.get_mut(place as usize).filter(|_| at > 0) {
                entry.full_at[rate as usize] = at;
            }
        }
        Ok(())
    }

    /// Takes `cost` from the bucket of this rate though there be less in it: what has been used can't be refused any
    /// more. The debt is at most that of [`DEBT_NS_MAX`].
    pub fn charge(&mut self, places: Places, rate: Rate, cost: u64, now: Instant) {
        for (place, scope) in places.scopes() {
            let Some(limit) = self.rate_limit(rate, scope) else {
                continue;
            };
            if let Some(entry) = self.entries.get_mut(place as usize) {
                let at = later(entry.full_at[rate as usize], cost, limit, now);
                entry.full_at[rate as usize] = at.min(now.0.saturating_add(DEBT_NS_MAX));
            }
        }
    }

    /// Whether there is anything in the bucket of this rate.
    ///
    /// # Errors
    /// There is not, in that of the client or in that of its network.
    pub fn check(&self, places: Places, rate: Rate, now: Instant) -> Result<(), Refused> {
        for (place, scope) in places.scopes() {
            let is_spent = self.entry(place).is_some_and(|entry| {
                entry.full_at[rate as usize] >= now.0.saturating_add(PERIOD_NS)
            });
            if is_spent && self.rate_limit(rate, scope).is_some() {
                let limited = rate.limited();
                return Err(Refused { limited, scope });
            }
        }
        Ok(())
    }

    fn entry(&self, place: u32) -> Option<&Entry> {
        self.entries.get(place as usize)
    }

    fn rate_limit(&self, rate: Rate, scope: Scope) -> Option<u64> {
        self.scoped(self.limits.rates[rate as usize], scope)
    }

    fn scoped(&self, limit: Limit, scope: Scope) -> Option<u64> {
        let value = limit.value(self.is_stressed)?;
        match scope {
            Scope::Client => Some(value),
            Scope::Network => Some(value.saturating_mul(self.limits.network_factor)),
        }
        .filter(|value| *value > 0)
    }

    /// Whether the sessions that are open, the new one included, are as many as there may be.
    fn admit_session(&self, places: Places) -> Result<(), Refused> {
        for (place, scope) in places.scopes() {
            let most = self.scoped(self.limits.sessions, scope);
            let open = self
                .entry(place)
                .map_or(0, |entry| u64::from(entry.sessions));
            if most.is_some_and(|most| open > most) {
                let limited = Limited::Sessions;
                return Err(Refused { limited, scope });
            }
        }
        Ok(())
    }

    /// Opens a session of `name`; returns its place.
    fn open(&mut self, name: Name, now: Instant) -> u32 {
        let Some(at) = self.find_or_insert(name, now) else {
            return NOWHERE;
        };
        let entry = &mut self.entries[at];
        entry.sessions = entry.sessions.saturating_add(1);
        at as u32
    }

    fn find_or_insert(&mut self, name: Name, now: Instant) -> Option<usize> {
        let mut best: Option<(u64, usize)> = None;
        for at in self.places_of(name) {
            #[cfg(test)]
            self.looked_at.set(self.looked_at.get() + 1);
            let entry = &self.entries[at];
            if entry.name == name {
                return Some(at);
            }
            // Time that is past is all the same; an empty entry is best of all.
            let until = match entry.name {
                Name::NOBODY => 0,
                _ => entry.relevant_until().max(now.0).max(1),
            };
            if entry.sessions == 0 && best.is_none_or(|(least, _)| until < least) {
                best = Some((until, at));
            }
        }
        let (until, at) = best?;
        self.evictions += u64::from(until > now.0);
        self.entries[at] = Entry {
            name,
            ..Entry::EMPTY
        };
        Some(at)
    }

    /// The entries that `name` can stand in.
    fn places_of(&self, name: Name) -> impl Iterator<Item = usize> + use<> {
        #[expect(
            deprecated,
            reason = "the one keyed hash of the standard library: SipHash-2-4"
        )]
        let mut hasher = core::hash::SipHasher::new_with_keys(self.keys.0, self.keys.1);
        hasher.write_u64(name.prefix);
        hasher.write_u8(name.kind);
        let hash = hasher.finish();
        let first = hash as usize & self.mask;
        // Never the same bucket twice.
        let second = (first ^ ((hash >> 32) as usize | 1)) & self.mask;
        [first, second]
            .into_iter()
            .flat_map(|bucket| bucket * BUCKET..(bucket + 1) * BUCKET)
    }
}

impl Places {
    fn scopes(self) -> impl Iterator<Item = (u32, Scope)> {
        [(self.client, Scope::Client), (self.network, Scope::Network)].into_iter()
    }
}

/// When a bucket is full after `cost` was taken from it.
fn later(full_at: u64, cost: u64, limit: u64, now: Instant) -> u64 {
    let taken = u128::from(cost) * u128::from(PERIOD_NS) / u128::from(limit);
    full_at
        .max(now.0)
        .saturating_add(u64::try_from(taken).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: f64) -> Instant {
        Instant(1_000 * SECOND + (seconds * SECOND as f64) as u64)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn both(value: u64) -> Limit {
        Limit {
            normal: value,
            stress: value,
        }
    }

    fn limits(rate: Rate, limit: Limit) -> ClientLimits {
        let mut limits = ClientLimits {
            network_factor: 3,
            ..ClientLimits::default()
        };
        limits.rates[rate as usize] = limit;
        limits
    }

    fn table(limits: ClientLimits) -> ClientTable {
        ClientTable::new(100, (7, 11), limits)
    }

    fn refused<T>(limited: Limited, scope: Scope) -> Result<T, Refused> {
        Err(Refused { limited, scope })
    }

    #[test]
    fn a_table_without_limits_refuses_nothing() {
        let mut table = table(ClientLimits::default());
        for _ in 0..10_000 {
            let places = table.connect(ip("192.0.2.1"), at(0.0)).expect("no limit");
            assert_eq!(table.admit(places, Rate::Bytes, u64::MAX, at(0.0)), Ok(()));
            table.charge(places, Rate::Messages, u64::MAX, at(0.0));
            assert_eq!(table.check(places, Rate::Messages, at(0.0)), Ok(()));
        }
    }

    #[test]
    fn sessions_are_counted_while_they_are_open() {
        let mut table = table(ClientLimits {
            sessions: Limit {
                normal: 2,
                stress: 1,
            },
            network_factor: 2,
            ..ClientLimits::default()
        });
        let (a, b, c) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.3"));
        let first = table.connect(a, at(0.0)).expect("one");
        table.connect(a, at(0.0)).expect("two");
        let third = refused(Limited::Sessions, Scope::Client);
        assert_eq!(table.connect(a, at(0.0)), third);
        assert_eq!(table.connect(a, at(1e6)), third, "time changes nothing");
        // Two addresses with two each are what the network may have.
        table.connect(b, at(0.0)).expect("one of the other");
        table.connect(b, at(0.0)).expect("two of the other");
        assert_eq!(
            table.connect(c, at(0.0)),
            refused(Limited::Sessions, Scope::Network)
        );
        table
            .connect(ip("192.0.3.1"), at(0.0))
            .expect("another network");
        table.disconnect(first);
        let one = table.connect(c, at(0.0)).expect("a place is free again");
        table.disconnect(one);
        // Under stress those that are open stay, and no other is let in.
        table.set_stress(true);
        assert_eq!(table.connect(a, at(0.0)), third);
        table.set_stress(false);
        table.connect(a, at(0.0)).expect("as before");
    }

    #[test]
    fn a_bucket_gives_its_size_at_once_and_then_one_at_a_time() {
        // Six a minute: one in ten seconds.
        let mut table = table(limits(Rate::Messages, both(6)));
        let places = table.connect(ip("192.0.2.1"), at(0.0)).expect("no limit");
        let none = refused(Limited::Messages, Scope::Client);
        for _ in 0..6 {
            assert_eq!(table.admit(places, Rate::Messages, 1, at(0.0)), Ok(()));
        }
        assert_eq!(table.admit(places, Rate::Messages, 1, at(0.0)), none);
        assert_eq!(table.admit(places, Rate::Messages, 1, at(9.999)), none);
        assert_eq!(table.admit(places, Rate::Messages, 1, at(10.0)), Ok(()));
        assert_eq!(table.admit(places, Rate::Messages, 1, at(10.0)), none);
        // What was refused cost nothing: after twenty seconds there are two.
        assert_eq!(table.admit(places, Rate::Messages, 2, at(30.0)), Ok(()));
        assert_eq!(table.admit(places, Rate::Messages, 1, at(30.0)), none);
        // Never more than its size, however long nobody comes; more than that in one never.
        assert_eq!(table.admit(places, Rate::Messages, 7, at(1e6)), none);
        assert_eq!(table.admit(places, Rate::Messages, 6, at(1e6)), Ok(()));
        assert_eq!(table.admit(places, Rate::Messages, 1, at(1e6)), none);
    }

    #[test]
    fn as_many_as_the_limit_come_at_once_for_any_limit() {
        for limit in [1, 2, 3, 7, 59, 60, 61, 997, 10_000, 123_457] {
            let mut table = table(limits(Rate::Recipients, both(limit)));
            let places = table.connect(ip("2001:db8::1"), at(0.0)).expect("no limit");
            let mut taken = 0;
            while table.admit(places, Rate::Recipients, 1, at(0.0)).is_ok() {
                taken += 1;
            }
            assert_eq!(taken, limit);
        }
    }

    #[test]
    fn a_network_may_use_some_times_what_a_client_may() {
        let mut table = table(limits(Rate::Connections, both(2)));
        for client in ["2001:db8:0:1::a", "2001:db8:0:2::a", "2001:db8:0:3::a"] {
            for host in 0..2 {
                // Addresses of one /64 are one client.
                let address = u128::from(match ip(client) {
                    IpAddr::V6(v6) => v6,
                    IpAddr::V4(_) => unreachable!("written above"),
                });
                let places = table.connect(IpAddr::V6((address + host).into()), at(0.0));
                table.disconnect(places.expect("two of each"));
            }
        }
        let client = refused(Limited::Connections, Scope::Client);
        let network = refused(Limited::Connections, Scope::Network);
        assert_eq!(table.connect(ip("2001:db8:0:1::b"), at(0.0)), client);
        assert_eq!(table.connect(ip("2001:db8:0:ffff::b"), at(0.0)), network);
        assert!(
            table.connect(ip("2001:db8:1::b"), at(0.0)).is_ok(),
            "another /48"
        );
        // A third of the refill is the client's: ten seconds give the network one, the client none.
        assert_eq!(table.connect(ip("2001:db8:0:1::b"), at(10.0)), client);
        assert!(table.connect(ip("2001:db8:0:ffff::b"), at(10.0)).is_ok());
    }

    #[test]
    fn what_was_used_without_asking_is_held_against_the_client() {
        let mut table = table(limits(Rate::Bytes, both(600)));
        let places = table.connect(ip("192.0.2.1"), at(0.0)).expect("no limit");
        let none = refused(Limited::Bytes, Scope::Client);
        table.charge(places, Rate::Bytes, 599, at(0.0));
        assert_eq!(table.check(places, Rate::Bytes, at(0.0)), Ok(()));
        table.charge(places, Rate::Bytes, 1_201, at(0.0));
        // Three times the bucket: two periods until there is anything in it.
        assert_eq!(table.check(places, Rate::Bytes, at(119.99)), none);
        assert_eq!(table.check(places, Rate::Bytes, at(120.1)), Ok(()));
        table.charge(places, Rate::Bytes, u64::MAX, at(200.0));
        assert_eq!(table.check(places, Rate::Bytes, at(200.0 + 3_539.9)), none);
        assert_eq!(
            table.check(places, Rate::Bytes, at(200.0 + 3_540.1)),
            Ok(()),
            "an hour at most"
        );
    }

    #[test]
    fn under_stress_a_bucket_keeps_its_share_and_fills_more_slowly() {
        let mut table = table(limits(
            Rate::Messages,
            Limit {
                normal: 60,
                stress: 6,
            },
        ));
        let places = table.connect(ip("192.0.2.1"), at(0.0)).expect("no limit");
        assert_eq!(table.admit(places, Rate::Messages, 30, at(0.0)), Ok(()));
        table.set_stress(true);
        // Half of it is left: three of six.
        let none = refused(Limited::Messages, Scope::Client);
        assert_eq!(table.admit(places, Rate::Messages, 4, at(0.0)), none);
        assert_eq!(table.admit(places, Rate::Messages, 3, at(0.0)), Ok(()));
        assert_eq!(table.admit(places, Rate::Messages, 1, at(9.9)), none);
        assert_eq!(table.admit(places, Rate::Messages, 1, at(10.0)), Ok(()));
        table.set_stress(false);
        assert_eq!(table.admit(places, Rate::Messages, 2, at(11.0)), none);
        assert_eq!(table.admit(places, Rate::Messages, 1, at(11.0)), Ok(()));
    }

    #[test]
    fn the_rates_of_a_client_do_not_touch_each_other() {
        let limits = ClientLimits {
            sessions: both(1),
            rates: [both(1); Rate::COUNT],
            network_factor: 1,
        };
        let mut table = table(limits);
        let places = table.connect(ip("192.0.2.1"), at(0.0)).expect("the first");
        for rate in [
            Rate::Messages,
            Rate::Recipients,
            Rate::Bytes,
            Rate::Handshakes,
        ] {
            assert_eq!(table.admit(places, rate, 1, at(0.0)), Ok(()));
            assert_eq!(
                table.admit(places, rate, 1, at(0.0)),
                refused(rate.limited(), Scope::Client)
            );
        }
        let sessions = refused(Limited::Sessions, Scope::Client);
        assert_eq!(table.connect(ip("192.0.2.1"), at(0.0)), sessions);
        table.disconnect(places);
        let connections = refused(Limited::Connections, Scope::Client);
        assert_eq!(table.connect(ip("192.0.2.1"), at(0.0)), connections);
        // The refused ones are not held open.
        assert!(table.connect(ip("192.0.2.1"), at(60.0)).is_ok());
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_client() {
        let mut table = table(limits(Rate::Connections, both(1)));
        assert!(table.connect(ip("192.0.2.1"), at(0.0)).is_ok());
        let again = table.connect(ip("::ffff:192.0.2.1"), at(0.0));
        assert_eq!(again, refused(Limited::Connections, Scope::Client));
    }

    /// Any client, a new one each time.
    fn nth_client(n: u32) -> IpAddr {
        if n.is_multiple_of(2) {
            IpAddr::V4((0x0b00_0000 + n.wrapping_mul(2_654_435_761) % 0x6000_0000).into())
        } else {
            // Each in a /48 of its own.
            IpAddr::V6(((0x2001_u128 << 112) | (u128::from(n) << 80)).into())
        }
    }

    #[test]
    fn a_million_clients_cost_no_more_each_and_displace_nobody_who_matters() {
        let mut table = table(limits(Rate::Connections, both(10)));
        // One has used up his share, one has a session open.
        let busy = ip("192.0.2.1");
        for _ in 0..10 {
            let places = table.connect(busy, at(0.0)).expect("ten");
            table.disconnect(places);
        }
        let open = table
            .connect(ip("198.51.100.1"), at(0.0))
            .expect("the first");
        let mut most = 0;
        for n in 0..1_000_000 {
            let before = table.looked_at.get();
            // A few microseconds between them: none is forgotten because its time is over.
            let now = Instant(at(0.0).0 + u64::from(n) * 2_000);
            let places = table.connect(nth_client(n), now).expect("each comes once");
            table.disconnect(places);
            most = most.max(table.looked_at.get() - before);
        }
        assert!(most <= 2 * WAYS as u64, "{most} entries looked at");
        assert!(
            table.evictions() > 900_000,
            "{} evictions",
            table.evictions()
        );
        assert_eq!(table.untracked(), 0);
        // Two seconds have given him back a third of one connection.
        let now = Instant(at(0.0).0 + 2 * SECOND);
        assert_eq!(
            table.connect(busy, now),
            refused(Limited::Connections, Scope::Client)
        );
        let entry = table.entry(open.client).expect("a place");
        assert_eq!(
            (entry.name, entry.sessions),
            (Name::of(ip("198.51.100.1")).0, 1)
        );
    }

    #[test]
    fn every_session_that_can_be_finds_a_place() {
        const SESSIONS: u32 = 10_000;
        let mut table = ClientTable::new(SESSIONS as usize, (1, 2), ClientLimits::default());
        let places: Vec<Places> = (0..SESSIONS)
            .map(|n| table.connect(nth_client(n), at(0.0)).expect("no limit"))
            .collect();
        assert_eq!(table.untracked(), 0);
        let mut seen: Vec<u32> = places.iter().map(|places| places.client).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), SESSIONS as usize, "no two clients in one place");
        for place in places {
            table.disconnect(place);
        }
        assert!(table.entries.iter().all(|entry| entry.sessions == 0));
    }

    #[test]
    fn a_client_without_a_place_is_let_in_and_counted() {
        let mut table = table(limits(Rate::Connections, both(1)));
        for entry in &mut table.entries {
            entry.name = Name { prefix: 1, kind: 9 };
            entry.sessions = 1;
        }
        let places = table.connect(ip("192.0.2.1"), at(0.0)).expect("let in");
        assert_eq!(places, Places::NONE);
        assert_eq!(table.admit(places, Rate::Connections, 9, at(0.0)), Ok(()));
        table.charge(places, Rate::Connections, 9, at(0.0));
        table.disconnect(places);
        assert_eq!((table.untracked(), table.evictions()), (1, 0));
        assert!(table.entries.iter().all(|entry| entry.sessions == 1));
    }

    #[test]
    fn the_memory_is_what_is_said() {
        assert_eq!(size_of::<Entry>(), 64);
        assert_eq!(ClientTable::memory_bytes(0), 65_536 * 64);
        assert_eq!(ClientTable::memory_bytes(10_000), 131_072 * 64);
        let table = table(ClientLimits::default());
        assert_eq!(
            ClientTable::memory_bytes(100),
            size_of_val(&*table.entries) as u64
        );
    }
}
