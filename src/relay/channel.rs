//! Raw channels: what a leg needs to send and receive beside its QUIC connection, and where a tag finds its leg.
//!
//! A leg has a channel when both sides of its allocation want one. Packets come in from the address that the
//! connection was accepted from, or that a cookie has come back from since; they go out to that address for
//! [`OPEN_FOR`] after the last cookie. The packets themselves are moved by `socket.rs`.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;

use super::leg::Leg;
use crate::wire::channel::{Cookie, HEADER_LEN, Tag};

/// How long a leg is sent raw packets after its last cookie came back.
const OPEN_FOR: Duration = Duration::from_secs(3);
/// How long a cookie is the current one; the one before counts too. A client returns it after a second.
const COOKIE_PERIOD: Duration = Duration::from_secs(4);
/// Probes of one leg that are answered at once, and then one each [`PROBE_INTERVAL`]. Clients probe once a second,
/// and once more where that opens the channel sooner.
const PROBE_BURST: u32 = 4;
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// One leg's raw channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub tag: Tag,
    path: ArcSwap<Path>,
    /// Monotonic nanoseconds; 0 while closed.
    open_until_nanos: AtomicU64,
    /// The largest UDP payload that the leg's path is known to carry.
    max_packet_bytes: AtomicUsize,
    /// When all probes so far are paid for, in monotonic nanoseconds.
    probes_paid_nanos: AtomicU64,
}

/// Where a client receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// The client's address, as its packets show it.
    pub remote: SocketAddr,
    /// The relay's own, which the client's packets came to.
    pub local_ip: Option<IpAddr>,
}

impl Channel {
    fn new(tag: Tag, path: Path, max_packet_bytes: usize) -> Self {
        Self {
            tag,
            path: ArcSwap::from_pointee(path),
            open_until_nanos: AtomicU64::new(0),
            max_packet_bytes: AtomicUsize::new(max_packet_bytes),
            probes_paid_nanos: AtomicU64::new(0),
        }
    }

    /// Whether packets from this address are the leg's.
    pub fn is_at(&self, remote: SocketAddr) -> bool {
        self.path.load().remote == remote
    }

    /// Where to send, if raw packets may be sent now.
    pub fn open_path(&self, now_nanos: u64) -> Option<Path> {
        (now_nanos < self.open_until_nanos.load(Relaxed)).then(|| **self.path.load())
    }

    /// A cookie has come back from there.
    pub fn prove(&self, path: Path, now_nanos: u64) {
        if **self.path.load() != path {
            self.path.store(Arc::new(path));
        }
        self.open_until_nanos.store(now_nanos + nanos(OPEN_FOR), Relaxed);
    }

    /// Sends datagrams until a cookie comes back: the client is not where it was.
    pub fn close(&self) {
        self.open_until_nanos.store(0, Relaxed);
    }

    /// Whether one more probe may be answered.
    pub fn take_probe(&self, now_nanos: u64) -> bool {
        let saved = nanos(PROBE_INTERVAL * PROBE_BURST);
        let pay = |paid: u64| {
            let paid = paid.max(now_nanos) + nanos(PROBE_INTERVAL);
            (paid <= now_nanos + saved).then_some(paid)
        };
        self.probes_paid_nanos.fetch_update(Relaxed, Relaxed, pay).is_ok()
    }

    /// The largest packet that can be sent to the leg, header included.
    pub fn max_packet_bytes(&self) -> usize {
        self.max_packet_bytes.load(Relaxed)
    }

    /// The largest payload.
    pub fn max_payload_bytes(&self) -> usize {
        self.max_packet_bytes().saturating_sub(HEADER_LEN)
    }

    /// Path MTU discovery has found what the leg's path carries.
    pub fn set_max_packet_bytes(&self, bytes: usize) {
        self.max_packet_bytes.store(bytes, Relaxed);
    }
}

/// All channels of the relay.
pub(super) struct Channels {
    /// By shard. A packet is looked up where its tag says, wherever it arrived.
    shards: Box<[Mutex<Shelf>]>,
    cookie_key: hmac::Key,
    tag_key: hmac::Key,
}

#[derive(Default)]
struct Shelf {
    legs: HashMap<Tag, Arc<Leg>>,
    /// How many tags this shard has given out.
    tags: u64,
}

impl Channels {
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new(shards: u8) -> Result<Self, getrandom::Error> {
        let mut keys = [[0; 32]; 2];
        for key in &mut keys {
            getrandom::fill(key)?;
        }
        let [cookie_key, tag_key] = keys.map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key));
        Ok(Self { shards: (0..shards).map(|_| Mutex::default()).collect(), cookie_key, tag_key })
    }

    /// Gives a leg a channel, unless it has one; whether it did.
    pub fn open(&self, leg: &Arc<Leg>) -> bool {
        if leg.channel().is_some() {
            return false;
        }
        let path = Path { remote: leg.connection.remote_address(), local_ip: leg.connection.local_ip() };
        let max_packet_bytes = leg.path_mtu_bytes();
        let Some(mut shelf) = self.shelf(leg.shard) else { return false };
        let tag = self.tag(leg.shard, shelf.tags);
        shelf.tags += 1;
        let first = leg.set_channel(Channel::new(tag, path, max_packet_bytes));
        if first {
            shelf.legs.insert(tag, leg.clone());
        }
        first
    }

    /// The leg is over; its tag, if it had one, names nobody from now on.
    pub fn close(&self, leg: &Leg) -> bool {
        leg.channel().is_some_and(|channel| {
            self.shelf(leg.shard).is_some_and(|mut shelf| shelf.legs.remove(&channel.tag).is_some())
        })
    }

    /// Whose tag this is.
    pub fn leg(&self, tag: Tag) -> Option<Arc<Leg>> {
        self.shelf(tag.shard())?.legs.get(&tag).cloned()
    }

    /// What proves that a leg receives at an address: the time, and a MAC over leg, address and time.
    pub fn cookie(&self, tag: Tag, remote: SocketAddr, now_nanos: u64) -> Cookie {
        self.cookie_of(tag, remote, now_nanos / nanos(COOKIE_PERIOD))
    }

    /// Whether the relay gave this cookie to this leg at this address, a short while ago.
    pub fn knows(&self, cookie: Cookie, tag: Tag, remote: SocketAddr, now_nanos: u64) -> bool {
        let period = now_nanos / nanos(COOKIE_PERIOD);
        [Some(period), period.checked_sub(1)].into_iter().flatten().any(|period| {
            let expected = self.cookie_of(tag, remote, period);
            aws_lc_rs::constant_time::verify_slices_are_equal(&expected, &cookie).is_ok()
        })
    }

    fn cookie_of(&self, tag: Tag, remote: SocketAddr, period: u64) -> Cookie {
        let mut mac = hmac::Context::with_key(&self.cookie_key);
        mac.update(tag.as_bytes());
        match remote.ip() {
            IpAddr::V4(ip) => mac.update(&ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&remote.port().to_be_bytes());
        mac.update(&period.to_be_bytes());
        let mut cookie = [0; 8];
        let [time, rest @ ..] = &mut cookie;
        // So that a cookie is never all zero by chance twice in a row, and a capture shows its age.
        *time = period as u8;
        for (to, from) in rest.iter_mut().zip(mac.sign().as_ref()) {
            *to = *from;
        }
        cookie
    }

    /// The tag with this number: a permutation of the numbers by a Feistel network, so that no tag is ever given
    /// twice and none can be guessed from others.
    fn tag(&self, shard: u8, number: u64) -> Tag {
        const HALF_BITS: u32 = 24;
        const HALF: u64 = (1 << HALF_BITS) - 1;
        let (mut left, mut right) = ((number >> HALF_BITS) & HALF, number & HALF);
        for round in 0..6_u8 {
            let mut mac = hmac::Context::with_key(&self.tag_key);
            mac.update(&[shard, round]);
            mac.update(&right.to_be_bytes());
            let mixed = mac.sign().as_ref().iter().take(3).fold(0, |all, byte| all << 8 | u64::from(*byte));
            (left, right) = (right, left ^ mixed);
        }
        let [_, _, random @ ..] = (left << HALF_BITS | right).to_be_bytes();
        Tag::new(shard, random)
    }

    fn shelf(&self, shard: u8) -> Option<MutexGuard<'_, Shelf>> {
        self.shards.get(usize::from(shard)).map(lock)
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_is_for_one_leg_at_one_address_and_for_a_while() {
        let channels = Channels::new(1).unwrap();
        let [tag, other] = [0, 1].map(|number| channels.tag(0, number));
        let home = addr("192.0.2.7:4000");
        for given in [0, 3 * SECOND, 4 * SECOND - 1, 4 * SECOND, 1000 * SECOND] {
            let cookie = channels.cookie(tag, home, given);
            for age in [0, SECOND, 4 * SECOND] {
                assert!(channels.knows(cookie, tag, home, given + age), "{given} + {age}");
            }
            assert!(!channels.knows(cookie, tag, home, given + 8 * SECOND), "too old");
            assert!(!channels.knows(cookie, other, home, given), "another leg's");
            for elsewhere in ["192.0.2.7:4001", "192.0.2.8:4000", "[2001:db8::1]:4000"] {
                assert!(!channels.knows(cookie, tag, addr(elsewhere), given), "{elsewhere}");
            }
            for bit in 0..64 {
                let mut forged = cookie;
                forged[bit / 8] ^= 1 << (bit % 8);
                assert!(!channels.knows(forged, tag, home, given), "bit {bit}");
            }
        }
        assert!(!channels.knows([0; 8], tag, home, SECOND));
        let foreign = Channels::new(1).unwrap().cookie(tag, home, SECOND);
        assert!(!channels.knows(foreign, tag, home, SECOND), "of another relay");
        // The same client on a socket for both families and on one for IPv4 alone.
        let mapped = channels.cookie(tag, addr("[::ffff:192.0.2.7]:4000"), SECOND);
        assert!(channels.knows(mapped, tag, home, SECOND));
    }

    #[test]
    fn no_tag_is_given_twice_and_each_names_its_shard() {
        let channels = Channels::new(2).unwrap();
        let tags: HashSet<_> = (0..2)
            .flat_map(|shard| (0..20_000).map(move |n| (shard, n)))
            .map(|(s, n)| channels.tag(s, n))
            .collect();
        assert_eq!(tags.len(), 40_000);
        assert_eq!(tags.iter().filter(|tag| tag.shard() == 1).count(), 20_000);
        // All six bytes take part.
        for at in 1..Tag::LEN {
            let seen: HashSet<_> = tags.iter().map(|tag| tag.as_bytes()[at]).collect();
            assert!(seen.len() > 200, "byte {at}: {} values", seen.len());
        }
        assert_ne!(channels.tag(0, 0), Channels::new(1).unwrap().tag(0, 0), "guessable");
    }

    #[test]
    fn a_channel_is_open_for_three_seconds_after_a_cookie_and_then_to_nobody() {
        let channels = Channels::new(1).unwrap();
        let home = Path { remote: addr("192.0.2.7:4000"), local_ip: None };
        let moved = Path { remote: addr("192.0.2.7:4001"), ..home };
        let channel = Channel::new(channels.tag(0, 0), home, 1200);
        assert_eq!(channel.open_path(SECOND), None, "never proven");
        assert!(channel.is_at(home.remote), "but the connection's own address may send");
        channel.prove(home, SECOND);
        assert_eq!(channel.open_path(SECOND), Some(home));
        assert_eq!(channel.open_path(4 * SECOND - 1), Some(home));
        assert_eq!(channel.open_path(4 * SECOND), None);
        channel.prove(moved, 5 * SECOND);
        assert_eq!(channel.open_path(5 * SECOND), Some(moved));
        assert!(channel.is_at(moved.remote) && !channel.is_at(home.remote));
        channel.close();
        assert_eq!(channel.open_path(5 * SECOND), None);
        assert_eq!((channel.max_packet_bytes(), channel.max_payload_bytes()), (1200, 1192));
        channel.set_max_packet_bytes(1452);
        assert_eq!(channel.max_payload_bytes(), 1444);
    }

    #[test]
    fn probes_are_answered_in_a_burst_and_then_at_their_interval() {
        let channels = Channels::new(1).unwrap();
        let home = Path { remote: addr("192.0.2.7:4000"), local_ip: None };
        let channel = Channel::new(channels.tag(0, 0), home, 1200);
        let mut now = 17 * SECOND;
        let burst = |now| (0..100).filter(|_| channel.take_probe(now)).count();
        assert_eq!(burst(now), 4);
        for _ in 0..3 {
            now += SECOND / 4;
            assert_eq!(burst(now), 1);
        }
        now += 3600 * SECOND;
        assert_eq!(burst(now), 4, "an idle time saves up one burst, not more");
    }
}
