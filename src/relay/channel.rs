//! Raw channels: what a leg needs to send and receive beside its QUIC connection, and where a tag finds its leg.
//!
//! A leg has a channel when both sides of its allocation want one. Packets come in from the address that the
//! connection was accepted from, or that a cookie has come back from since; they go out to that address for
//! [`OPEN_FOR`] after the last cookie. The packets themselves are moved by `socket.rs`.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
    time::Duration,
};

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

/// In place of a tag where there is none; above each tag there is a bit that makes it another number.
const NO_TAG: u64 = 0;
const SOME_TAG: u64 = 1 << 56;
/// How often a path is read again that changes under the reader's eyes. It changes when a client moves.
const PATH_READS: usize = 64;

/// One leg's raw channel, or the place for it.
///
/// All that a packet to this leg needs lies in one cache line, and what one from it needs begins there: with
/// thousands of legs each packet finds this in cold memory.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Channel {
    tag: AtomicU64,
    /// Monotonic nanoseconds; 0 while closed.
    open_until_nanos: AtomicU64,
    /// Odd while the path is being changed, and another number after.
    path_version: AtomicU32,
    /// The largest UDP payload that the leg's path is known to carry.
    max_packet_bytes: AtomicU32,
    path: [AtomicU64; PATH_WORDS],
    /// When all probes so far are paid for, in monotonic nanoseconds.
    probes_paid_nanos: AtomicU64,
}

/// Where a client receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// The client's address, as its packets show it. Flow labels are not kept.
    pub remote: SocketAddr,
    /// The relay's own, which the client's packets came to.
    pub local_ip: Option<IpAddr>,
}

const PATH_WORDS: usize = 5;
const REMOTE_IS_V6: u64 = 1 << 16;
const LOCAL_IS_V4: u64 = 1 << 17;
const LOCAL_IS_V6: u64 = 1 << 18;
const SCOPE_SHIFT: u32 = 32;

impl Path {
    /// The remote address, its port, scope and what is which, the local address.
    fn to_words(self) -> [u64; PATH_WORDS] {
        let [a, b] = halves(self.remote.ip());
        let about = match self.remote {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => REMOTE_IS_V6 | u64::from(v6.scope_id()) << SCOPE_SHIFT,
        };
        let (local, [c, d]) = match self.local_ip {
            None => (0, [0, 0]),
            Some(ip @ IpAddr::V4(_)) => (LOCAL_IS_V4, halves(ip)),
            Some(ip @ IpAddr::V6(_)) => (LOCAL_IS_V6, halves(ip)),
        };
        [a, b, u64::from(self.remote.port()) | about | local, c, d]
    }

    fn from_words([a, b, about, c, d]: [u64; PATH_WORDS]) -> Self {
        let port = about as u16;
        let remote = if about & REMOTE_IS_V6 == 0 {
            SocketAddr::from((v4(b), port))
        } else {
            SocketAddrV6::new(v6(a, b), port, 0, (about >> SCOPE_SHIFT) as u32).into()
        };
        let local_ip = match about & (LOCAL_IS_V4 | LOCAL_IS_V6) {
            0 => None,
            LOCAL_IS_V4 => Some(v4(d).into()),
            _ => Some(v6(c, d).into()),
        };
        Self { remote, local_ip }
    }
}

fn halves(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn v4(bits: u64) -> Ipv4Addr {
    Ipv4Addr::from_bits(bits as u32)
}

fn v6(high: u64, low: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))
}

impl Channel {
    /// The place for a channel.
    pub fn none() -> Self {
        Self {
            tag: AtomicU64::new(NO_TAG),
            open_until_nanos: AtomicU64::new(0),
            path_version: AtomicU32::new(0),
            max_packet_bytes: AtomicU32::new(0),
            path: Default::default(),
            probes_paid_nanos: AtomicU64::new(0),
        }
    }

    /// Makes it a channel: its tag, where the client is, and what fits there. Closed until a cookie comes back.
    fn begin(&self, tag: Tag, path: Path, max_packet_bytes: usize) {
        self.set_path(path);
        self.set_max_packet_bytes(max_packet_bytes);
        let [a, b, c, d, e, f, g] = *tag.as_bytes();
        self.tag.store(SOME_TAG | u64::from_be_bytes([0, a, b, c, d, e, f, g]), Release);
    }

    /// The leg's tag; `None` while there is no channel.
    pub fn tag(&self) -> Option<Tag> {
        let tag = self.tag.load(Acquire);
        let [_, shard, random @ ..] = tag.to_be_bytes();
        (tag != NO_TAG).then_some(Tag::new(shard, random))
    }

    /// Whether packets from this address are the leg's.
    pub fn is_at(&self, remote: SocketAddr) -> bool {
        const LOCAL: u64 = LOCAL_IS_V4 | LOCAL_IS_V6;
        let [a, b, about, ..] = Path { remote, local_ip: None }.to_words();
        self.words().is_some_and(|[c, d, found, ..]| (a, b, about) == (c, d, found & !LOCAL))
    }

    /// Where to send, if raw packets may be sent now.
    pub fn open_path(&self, now_nanos: u64) -> Option<Path> {
        if now_nanos >= self.open_until_nanos.load(Relaxed) {
            return None;
        }
        self.words().map(Path::from_words)
    }

    /// A cookie has come back from there.
    pub fn prove(&self, path: Path, now_nanos: u64) {
        if self.words() != Some(path.to_words()) && !self.set_path(path) {
            // Another thread is at it. The client probes again.
            return;
        }
        self.open_until_nanos.store(now_nanos + nanos(OPEN_FOR), Relaxed);
    }

    /// Sends datagrams until a cookie comes back: the client is not where it was.
    pub fn close(&self) {
        self.open_until_nanos.store(0, Relaxed);
    }

    /// The path as it was at one moment; `None` when it keeps changing.
    fn words(&self) -> Option<[u64; PATH_WORDS]> {
        for _ in 0..PATH_READS {
            let before = self.path_version.load(Acquire);
            let words = std::array::from_fn(|at| self.path.get(at).map_or(0, |word| word.load(Relaxed)));
            fence(Acquire);
            if before.is_multiple_of(2) && self.path_version.load(Relaxed) == before {
                return Some(words);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Whether this thread could change it: no other was changing it at that moment.
    fn set_path(&self, path: Path) -> bool {
        let version = self.path_version.load(Relaxed);
        let changing = version.wrapping_add(1);
        if version % 2 == 1
            || self.path_version.compare_exchange(version, changing, Acquire, Relaxed).is_err()
        {
            return false;
        }
        fence(Release);
        for (word, to) in self.path.iter().zip(path.to_words()) {
            word.store(to, Relaxed);
        }
        self.path_version.store(changing.wrapping_add(1), Release);
        true
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
        self.max_packet_bytes.load(Relaxed) as usize
    }

    /// The largest payload.
    pub fn max_payload_bytes(&self) -> usize {
        self.max_packet_bytes().saturating_sub(HEADER_LEN)
    }

    /// Path MTU discovery has found what the leg's path carries.
    pub fn set_max_packet_bytes(&self, bytes: usize) {
        self.max_packet_bytes.store(u32::try_from(bytes).unwrap_or(u32::MAX), Relaxed);
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
    legs: HashMap<Tag, Arc<Leg>, BuildHasherDefault<TagHasher>>,
    /// How many tags this shard has given out.
    tags: u64,
}

/// Tags are as good as random, and nobody chooses one but the relay: spreading their bits is enough.
#[derive(Default)]
struct TagHasher(u64);

impl Hasher for TagHasher {
    fn write(&mut self, bytes: &[u8]) {
        let number = bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        // Fibonacci hashing: the highest bits come from all of them.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// The length, which is the same for all.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Channels {
    /// Of how many shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

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
        // The table's mutex is held: nobody else gives this leg one.
        leg.place_for_channel().begin(tag, path, max_packet_bytes);
        shelf.legs.insert(tag, leg.clone());
        drop(shelf);
        leg.tell(|outbox| outbox.channel = Some(tag));
        true
    }

    /// The leg is over; its tag, if it had one, names nobody from now on.
    pub fn close(&self, leg: &Leg) -> bool {
        let Some(tag) = leg.channel().and_then(Channel::tag) else { return false };
        self.shelf(leg.shard).is_some_and(|mut shelf| shelf.legs.remove(&tag).is_some())
    }

    /// Whose tag this is.
    pub fn leg(&self, tag: Tag) -> Option<Arc<Leg>> {
        self.shelf(tag.shard())?.legs.get(&tag).cloned()
    }

    /// The same for a short look that waits for nothing: other packets of this shard's legs wait for its end.
    /// `None` where the tag names nobody.
    pub fn look<T>(&self, tag: Tag, look: impl FnOnce(&Leg) -> T) -> Option<T> {
        self.shelf(tag.shard())?.legs.get(&tag).map(|leg| look(leg))
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

    fn begun(tag: Tag, path: Path) -> Channel {
        let channel = Channel::none();
        assert_eq!(channel.tag(), None);
        channel.begin(tag, path, 1200);
        assert_eq!(channel.tag(), Some(tag));
        channel
    }

    #[test]
    fn what_a_packet_to_a_leg_needs_lies_in_one_cache_line() {
        assert_eq!(std::mem::offset_of!(Channel, probes_paid_nanos), 64);
    }

    #[test]
    fn paths_are_kept_as_they_are() {
        let locals = [None, Some("192.0.2.1"), Some("2001:db8::1"), Some("::ffff:192.0.2.1")];
        let remotes =
            ["192.0.2.7:4000", "[::ffff:192.0.2.7]:4000", "[fe80::7%9]:65535", "0.0.0.0:0", "[::]:0"];
        let mut seen = HashSet::new();
        for remote in remotes.map(addr) {
            for local_ip in locals.map(|ip| ip.map(|ip| ip.parse().unwrap())) {
                let path = Path { remote, local_ip };
                assert_eq!(Path::from_words(path.to_words()), path);
                assert!(seen.insert(path.to_words()), "{path:?}");
                let channel = begun(Tag::new(0, [0; 6]), path);
                for other in remotes.map(addr) {
                    assert_eq!(channel.is_at(other), other == remote, "{path:?} {other}");
                }
            }
        }
    }

    /// Readers see one path or the other, however often writers change it.
    #[test]
    fn a_path_is_never_read_half_changed() {
        let paths = [1_u8, 2].map(|n| Path {
            remote: SocketAddr::from(([n; 16], u16::from_be_bytes([n; 2]))),
            local_ip: Some(IpAddr::from([n; 16])),
        });
        let channel = begun(Tag::new(0, [0; 6]), paths[0]);
        let changed = [AtomicU32::new(0), AtomicU32::new(0)];
        std::thread::scope(|scope| {
            for (path, changed) in paths.iter().zip(&changed) {
                scope.spawn(|| {
                    while changed.load(Relaxed) < 10_000 {
                        changed.fetch_add(channel.set_path(*path).into(), Relaxed);
                        std::thread::yield_now();
                    }
                });
            }
            let [mut read, mut seen] = [0, 0];
            while read < 10_000 || changed.iter().any(|changed| changed.load(Relaxed) < 10_000) {
                if let Some(words) = channel.words() {
                    let path = Path::from_words(words);
                    seen |= 1 << paths.iter().position(|known| *known == path).unwrap();
                    read += 1;
                }
            }
            assert_eq!(seen, 0b11);
        });
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
        let channel = begun(channels.tag(0, 0), home);
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
        let channel = begun(channels.tag(0, 0), home);
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
