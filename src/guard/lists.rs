//! Networks that are let in and networks that are kept out.
//!
//! Of all networks that an address lies in, the narrowest decides; where the same one is listed as allowed and as
//! blocked, it is allowed. So `block = ["0.0.0.0/0", "::/0"]` with `allow = ["192.0.2.0/24"]` serves one network, and
//! `block = ["192.0.2.0/24"]` with `allow = ["192.0.2.7"]` all but one network's others.
//!
//! Two lists are configured and replaced as a whole; blocks are pushed beside them while the relay runs, and end by
//! themselves. Every look is told the time, monotonic.

use std::{
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::source::folded;

/// Blocks that may be pushed: some 20 MB. A feed that is longer belongs into a firewall.
pub const MAX_PUSHED: usize = 100_000;
/// What is kept of a block's reason, in characters.
pub const MAX_REASON_CHARS: usize = 200;

/// A map of networks, of both families.
#[derive(Debug)]
struct Networks<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T> Default for Networks<T> {
    fn default() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<T> Networks<T> {
    fn insert(&mut self, network: IpNet, value: T) {
        match folded(network) {
            IpNet::V4(network) => self.v4.insert(network, value),
            IpNet::V6(network) => self.v6.insert(network, value),
        };
    }

    fn remove(&mut self, network: IpNet) -> Option<T> {
        match folded(network) {
            IpNet::V4(network) => self.v4.remove(&network),
            IpNet::V6(network) => self.v6.remove(&network),
        }
    }

    fn contains(&self, network: IpNet) -> bool {
        match folded(network) {
            IpNet::V4(network) => self.v4.contains_key(&network),
            IpNet::V6(network) => self.v6.contains_key(&network),
        }
    }

    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// The narrowest network around an address of which `counts` holds, as its prefix length.
    fn narrowest(&self, ip: IpAddr, counts: impl Fn(&T) -> bool) -> Option<u8> {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let around = self.v4.cover(&Ipv4Net::from(ip));
                around.filter(|(_, value)| counts(value)).map(|(network, _)| network.prefix_len()).last()
            }
            IpAddr::V6(ip) => {
                let around = self.v6.cover(&Ipv6Net::from(ip));
                around.filter(|(_, value)| counts(value)).map(|(network, _)| network.prefix_len()).last()
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.v4.retain(|_, value| keep(value));
        self.v6.retain(|_, value| keep(value));
    }

    fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let v4 = self.v4.iter().map(|(network, value)| (IpNet::V4(network), value));
        v4.chain(self.v6.iter().map(|(network, value)| (IpNet::V6(network), value)))
    }
}

impl FromIterator<IpNet> for Networks<()> {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let mut all = Self::default();
        networks.into_iter().for_each(|network| all.insert(network, ()));
        all
    }
}

/// A set of networks that an address is in or not.
#[derive(Debug, Default)]
pub struct NetworkSet(Networks<()>);

impl NetworkSet {
    /// Whether the address lies in one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.narrowest(ip, |()| true).is_some()
    }
}

impl FromIterator<IpNet> for NetworkSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// A block in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What is blocked.
    pub network: IpNet,
    /// When it ends by itself, monotonic; `None` when somebody has to end it.
    pub until: Option<Duration>,
    /// Why, as whoever pushed it said; empty for the configured ones.
    pub reason: Arc<str>,
    /// Whether it is the configuration's: those end by a change of it.
    pub configured: bool,
}

/// No more blocks can be pushed before others end: there are [`MAX_PUSHED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_PUSHED} blocks already")]
pub struct TooManyBlocks;

#[derive(Debug)]
struct Pushed {
    until: Option<Duration>,
    reason: Arc<str>,
}

impl Pushed {
    fn holds(&self, now: Duration) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

#[derive(Debug, Default)]
struct Configured {
    allow: Networks<()>,
    block: Networks<()>,
}

/// Both lists, and what was pushed.
#[derive(Debug, Default)]
pub struct Lists {
    configured: ArcSwap<Configured>,
    pushed: RwLock<Networks<Pushed>>,
    /// Counts the changes after which an address may be blocked that was not.
    changes: AtomicU64,
}

impl Lists {
    /// Replaces the configured lists; what was pushed stays.
    pub fn configure(&self, allow: &[IpNet], block: &[IpNet]) {
        let lists =
            Configured { allow: allow.iter().copied().collect(), block: block.iter().copied().collect() };
        self.configured.store(Arc::new(lists));
        self.changed();
    }

    /// Whether an address is kept out.
    pub fn is_blocked(&self, ip: IpAddr, now: Duration) -> bool {
        let configured = self.configured.load();
        let pushed = {
            let pushed = self.pushed.read().unwrap_or_else(PoisonError::into_inner);
            pushed.narrowest(ip, |block| block.holds(now))
        };
        let blocked = configured.block.narrowest(ip, |()| true).max(pushed);
        blocked.is_some_and(|bits| {
            let allowed = configured.allow.narrowest(ip, |()| true);
            allowed.is_none_or(|allowed| allowed < bits)
        })
    }

    /// Blocks a network until then, or until it is unblocked. A block of the same network is replaced. Answers how many
    /// blocks were pushed, those among them that are over and have not been let go of.
    ///
    /// # Errors
    /// [`TooManyBlocks`]; nothing has changed.
    pub fn block(
        &self,
        network: IpNet,
        until: Option<Duration>,
        reason: &str,
        now: Duration,
    ) -> Result<usize, TooManyBlocks> {
        let reason = reason.chars().take(MAX_REASON_CHARS).collect::<String>().into();
        let mut pushed = self.pushed.write().unwrap_or_else(PoisonError::into_inner);
        if pushed.len() >= MAX_PUSHED && !pushed.contains(network) {
            pushed.retain(|block| block.holds(now));
            if pushed.len() >= MAX_PUSHED {
                return Err(TooManyBlocks);
            }
        }
        pushed.insert(network, Pushed { until, reason });
        let blocks = pushed.len();
        drop(pushed);
        self.changed();
        Ok(blocks)
    }

    /// Ends a block that was pushed; whether there was one of exactly this network.
    pub fn unblock(&self, network: IpNet, now: Duration) -> bool {
        let mut pushed = self.pushed.write().unwrap_or_else(PoisonError::into_inner);
        pushed.remove(network).is_some_and(|block| block.holds(now))
    }

    /// The blocks in force, configured ones first.
    pub fn blocks(&self, now: Duration) -> Vec<Block> {
        let configured = self.configured.load();
        let of_file = configured.block.iter().map(|(network, ())| Block {
            network,
            until: None,
            reason: "".into(),
            configured: true,
        });
        let pushed = self.pushed.read().unwrap_or_else(PoisonError::into_inner);
        let in_force = pushed.iter().filter(|(_, block)| block.holds(now));
        of_file
            .chain(in_force.map(|(network, block)| Block {
                network,
                until: block.until,
                reason: block.reason.clone(),
                configured: false,
            }))
            .collect()
    }

    /// How many blocks are in force. Takes time in proportion to those that were pushed, and no memory.
    pub fn count(&self, now: Duration) -> usize {
        let pushed = self.pushed.read().unwrap_or_else(PoisonError::into_inner);
        let in_force = pushed.iter().filter(|(_, block)| block.holds(now)).count();
        self.configured.load().block.len() + in_force
    }

    /// Lets go of what is over; how many blocks that were pushed are left. Takes time in proportion to them.
    pub fn tidy(&self, now: Duration) -> usize {
        let mut pushed = self.pushed.write().unwrap_or_else(PoisonError::into_inner);
        if pushed.iter().any(|(_, block)| !block.holds(now)) {
            pushed.retain(|block| block.holds(now));
        }
        pushed.len()
    }

    /// A number that is another one whenever an address may be blocked that was not.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn nets(networks: &[&str]) -> Vec<IpNet> {
        networks.iter().map(|network| net(network)).collect()
    }

    fn net(network: &str) -> IpNet {
        network.parse().unwrap()
    }

    fn blocked(lists: &Lists, ip: &str) -> bool {
        lists.is_blocked(ip.parse().unwrap(), NOW)
    }

    #[test]
    fn r6_2_the_narrowest_network_decides() {
        let lists = Lists::default();
        assert!(!blocked(&lists, "192.0.2.7"), "nothing is blocked unless it is said");
        lists.configure(
            &nets(&["192.0.2.0/24", "198.51.100.7/32"]),
            &nets(&["192.0.2.128/25", "198.51.100.7/32"]),
        );
        for (ip, is_blocked) in [
            ("192.0.2.7", false),
            ("192.0.2.200", true),
            ("::ffff:192.0.2.200", true),
            ("198.51.100.7", false),
            ("203.0.113.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(blocked(&lists, ip), is_blocked, "{ip}");
        }
        // One network alone.
        lists.configure(&nets(&["2001:db8::/32", "10.0.0.0/8"]), &nets(&["0.0.0.0/0", "::/0"]));
        for (ip, is_blocked) in [
            ("2001:db8::1", false),
            ("2001:db9::1", true),
            ("10.1.2.3", false),
            ("::ffff:10.1.2.3", false),
            ("11.1.2.3", true),
            ("::ffff:11.1.2.3", true),
        ] {
            assert_eq!(blocked(&lists, ip), is_blocked, "{ip}");
        }
        lists.configure(&[], &nets(&["::ffff:192.0.2.0/120"]));
        assert!(blocked(&lists, "192.0.2.9") && blocked(&lists, "::ffff:192.0.2.9"));
    }

    #[test]
    fn r6_5_a_pushed_block_ends_by_itself_or_is_ended() {
        let lists = Lists::default();
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        let until = NOW + Duration::from_secs(10);
        let changes = lists.changes();
        lists.block(net("192.0.2.7/32"), Some(until), "scans", NOW).unwrap();
        assert_ne!(lists.changes(), changes);
        lists.block(net("192.0.2.0/24"), None, &"long ".repeat(1000), NOW).unwrap();
        assert!(lists.is_blocked(ip, NOW));
        let listed = lists.blocks(NOW);
        assert_eq!((listed.len(), lists.count(NOW)), (2, 2));
        let one = listed.iter().find(|block| block.network.prefix_len() == 32).unwrap();
        assert_eq!((one.until, &*one.reason, one.configured), (Some(until), "scans", false));
        assert!(listed.iter().all(|block| block.reason.chars().count() <= MAX_REASON_CHARS));
        // A narrower one that is over does not hide the wider one.
        assert!(lists.is_blocked(ip, until));
        assert!(lists.unblock(net("::ffff:192.0.2.99/120"), NOW), "the same network, written otherwise");
        assert!(!lists.unblock(net("192.0.2.0/24"), NOW), "once");
        assert!(lists.is_blocked(ip, until - Duration::from_nanos(1)));
        assert!(!lists.is_blocked(ip, until));
        assert!(lists.blocks(until).is_empty());
        assert_eq!(lists.count(until), 0);
        assert_eq!((lists.tidy(NOW), lists.tidy(until)), (1, 0));
        // A reload leaves what was pushed.
        lists.block(net("2001:db8::/32"), None, "", NOW).unwrap();
        lists.configure(&[], &nets(&["198.51.100.0/24"]));
        assert_eq!(lists.count(NOW), 2);
        assert!(blocked(&lists, "2001:db8::7") && blocked(&lists, "198.51.100.1"));
        lists.configure(&nets(&["2001:db8::7/128"]), &[]);
        assert!(!blocked(&lists, "2001:db8::7"), "allowed more narrowly");
        assert!(blocked(&lists, "2001:db8::8") && !blocked(&lists, "198.51.100.1"));
    }

    #[test]
    fn r6_5_pushed_blocks_are_bounded() {
        let lists = Lists::default();
        let nth = |n: u32| IpNet::from(IpAddr::from(std::net::Ipv4Addr::from_bits(n)));
        let until = Some(NOW + Duration::from_secs(1));
        for n in 0..MAX_PUSHED as u32 {
            lists.block(nth(n), until.filter(|_| n == 0), "", NOW).unwrap();
        }
        assert_eq!(lists.block(nth(1 << 30), None, "", NOW), Err(TooManyBlocks));
        assert_eq!(
            lists.block(nth(5), None, "another reason", NOW).map(drop),
            Ok(()),
            "which takes no more room"
        );
        let later = NOW + Duration::from_secs(1);
        assert_eq!(
            lists.block(nth(1 << 30), None, "", later).map(drop),
            Ok(()),
            "in the place of what is over"
        );
        assert_eq!(lists.block(nth(2 << 30), None, "", later), Err(TooManyBlocks));
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        let v4 = (0..64_u32, 24..=32_u8).prop_map(|(host, bits)| {
            IpNet::new(std::net::Ipv4Addr::from_bits(0xc000_0200 | host).into(), bits)
        });
        let v6 = (0..64_u128, 120..=128_u8).prop_map(|(host, bits)| {
            IpNet::new(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | host).into(), bits)
        });
        prop_oneof![v4, v6].prop_map(|network| network.unwrap())
    }

    proptest! {
        /// The trie answers what a walk through all networks answers.
        #[test]
        fn r6_2_lists_answer_as_a_plain_search_does(
            allow in prop::collection::vec(any_network(), 0..6),
            block in prop::collection::vec(any_network(), 0..6),
            pushed in prop::collection::vec((any_network(), prop::option::of(50..150_u64)), 0..6),
            host in 0..64_u32,
            v6 in any::<bool>(),
        ) {
            let lists = Lists::default();
            lists.configure(&allow, &block);
            let mut in_force = block.clone();
            for (n, (network, until)) in pushed.iter().enumerate() {
                lists.block(*network, until.map(Duration::from_secs), "", Duration::ZERO).unwrap();
                let replaced = pushed.iter().skip(n + 1).any(|(later, _)| later.trunc() == network.trunc());
                if !replaced && until.is_none_or(|until| until > NOW.as_secs()) {
                    in_force.push(*network);
                }
            }
            let ip: IpAddr = if v6 {
                std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(host)).into()
            } else {
                std::net::Ipv4Addr::from_bits(0xc000_0200 | host).into()
            };
            let narrowest = |networks: &[IpNet]| {
                networks.iter().filter(|network| network.contains(&ip)).map(IpNet::prefix_len).max()
            };
            let expected = match (narrowest(&in_force), narrowest(&allow)) {
                (Some(blocked), Some(allowed)) => blocked > allowed,
                (blocked, _) => blocked.is_some(),
            };
            prop_assert_eq!(lists.is_blocked(ip, NOW), expected);
        }
    }
}
