//! What addresses without a proof were sent, against what came from them: never more than three times as much.
//!
//! quinn keeps that bound for each handshake, but lets its last datagram reach beyond it. So the sockets keep an
//! account for each address from which a handshake is under way that nothing proves yet, and drop what the account
//! does not cover: to quinn it is lost on the way, and the client, which asks again, brings new cover.
//!
//! Only datagrams with long headers are held back: they are the handshake's, and others may be of a connection that
//! has long been proven, from the same socket. What else is sent is counted as far as a handshake sends such things.
//! Accounts are few and short-lived; a filter by port says for all other addresses that there is none.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

/// RFC 9000, section 8.1.
const FACTOR: u64 = 3;
/// What opened the account, at least: a client's first datagram.
const FIRST_DATAGRAM_BYTES: u64 = 1200;
/// How long an account outlives a handshake that failed: quinn still says goodbye.
const LINGER: Duration = Duration::from_secs(5);
/// What a handshake's server sends with short headers before its client has answered: new connection IDs. More than that is of
/// another connection.
const MAX_EARLY_BYTES: u64 = 600;
/// Ports are told apart by so many of their lower bits.
const FILTER: usize = 4096;
/// Some 6 MB. Beyond, callers prove their address first.
const MAX_ACCOUNTS: usize = 1 << 16;

#[derive(Debug, Default)]
struct Account {
    received_bytes: u64,
    /// Of the datagrams in there, how many may yet turn out to be the first of another handshake.
    first_datagrams: u64,
    sent_bytes: u64,
    /// With short headers.
    early_bytes: u64,
    /// Begun since there is an account.
    begun: u64,
    /// Under way.
    handshakes: u32,
    /// Monotonic; when it is let go unless another handshake begins.
    until: Option<Duration>,
}

/// The accounts of all shards.
#[derive(Debug)]
pub(super) struct Unproven {
    accounts: Mutex<HashMap<SocketAddr, Account>>,
    /// How many accounts there are, by port.
    by_port: Box<[AtomicU32]>,
}

impl Default for Unproven {
    fn default() -> Self {
        let by_port = (0..FILTER).map(|_| AtomicU32::new(0)).collect();
        Self { accounts: Mutex::default(), by_port }
    }
}

impl Unproven {
    /// A handshake begins at the call of an address without a proof; `None` when there is no room for an account.
    pub fn open(self: &Arc<Self>, address: SocketAddr) -> Option<Handshake> {
        let mut accounts = self.lock();
        if accounts.len() >= MAX_ACCOUNTS && !accounts.contains_key(&address) {
            return None;
        }
        let account = accounts.entry(address).or_insert_with(|| {
            if let Some(accounts) = self.by_port(address) {
                accounts.fetch_add(1, Relaxed);
            }
            Account::default()
        });
        // What came before there was an account, together with the datagram that opened it, has not been counted yet.
        if account.first_datagrams > 0 {
            account.first_datagrams -= 1;
        } else {
            account.received_bytes += FIRST_DATAGRAM_BYTES;
        }
        account.begun += 1;
        account.handshakes += 1;
        account.until = None;
        Some(Handshake { all: self.clone(), address, proven: false, ended_at: Duration::ZERO })
    }

    /// A datagram with a long header came from there.
    pub fn received(&self, address: SocketAddr, bytes: usize) {
        if self.may_know(address)
            && let Some(account) = self.lock().get_mut(&address)
        {
            account.received_bytes += bytes as u64;
            account.first_datagrams += u64::from(bytes as u64 >= FIRST_DATAGRAM_BYTES);
        }
    }

    /// A datagram with a short header goes there.
    pub fn sent(&self, address: SocketAddr, bytes: usize) {
        if self.may_know(address)
            && let Some(account) = self.lock().get_mut(&address)
        {
            account.early_bytes = (account.early_bytes + bytes as u64).min(MAX_EARLY_BYTES * account.begun);
        }
    }

    /// How much of these datagrams of `stride` bytes each, the last perhaps shorter, may be sent; counts it as sent.
    pub fn cover(&self, address: SocketAddr, bytes: usize, stride: usize) -> usize {
        if !self.may_know(address) {
            return bytes;
        }
        let mut accounts = self.lock();
        let Some(account) = accounts.get_mut(&address) else { return bytes };
        let left = (FACTOR * account.received_bytes).saturating_sub(account.sent_bytes + account.early_bytes);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let covered = if bytes <= left { bytes } else { left - left % stride.max(1) };
        account.sent_bytes += covered as u64;
        covered
    }

    /// Lets go of what is over.
    pub fn tidy(&self, mono: Duration) {
        self.lock().retain(|address, account| {
            let stays = account.until.is_none_or(|until| mono < until);
            if !stays {
                self.gone(*address);
            }
            stays
        });
    }

    fn by_port(&self, address: SocketAddr) -> Option<&AtomicU32> {
        self.by_port.get(usize::from(address.port()) % FILTER)
    }

    /// Whether there may be an account.
    fn may_know(&self, address: SocketAddr) -> bool {
        self.by_port(address).is_some_and(|accounts| accounts.load(Relaxed) > 0)
    }

    fn gone(&self, address: SocketAddr) {
        if let Some(accounts) = self.by_port(address) {
            accounts.fetch_sub(1, Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake that is under way.
#[derive(Debug)]
pub(super) struct Handshake {
    all: Arc<Unproven>,
    address: SocketAddr,
    proven: bool,
    ended_at: Duration,
}

impl Handshake {
    /// It has finished, and so the address is proven: what else is sent there needs no cover.
    pub fn finished(mut self) {
        self.proven = true;
    }

    /// It has failed.
    pub fn failed(mut self, mono: Duration) {
        self.ended_at = mono;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut accounts = self.all.lock();
        if let Some(account) = accounts.get_mut(&self.address) {
            account.handshakes = account.handshakes.saturating_sub(1);
            if self.proven {
                accounts.remove(&self.address);
                self.all.gone(self.address);
            } else if account.handshakes == 0 {
                account.until = Some(self.ended_at + LINGER);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn r6_3_an_account_covers_three_times_what_came_and_no_more() {
        let all = Arc::new(Unproven::default());
        let [there, elsewhere] = ["192.0.2.7:4000", "192.0.2.7:4001"].map(|addr| addr.parse().unwrap());
        assert_eq!(all.cover(there, 100_000, 1200), 100_000, "nothing is known of it");
        let handshake = all.open(there).unwrap();
        assert_eq!(all.cover(elsewhere, 100_000, 1200), 100_000);
        assert_eq!(all.cover(there, 1338, 1200), 1338);
        assert_eq!(all.cover(there, 2400, 1200), 1200, "whole datagrams");
        assert_eq!(all.cover(there, 1200, 1200), 0);
        assert_eq!(all.cover(there, 1062, 1062), 1062);
        assert_eq!(all.cover(there, 1, 1), 0);
        all.received(elsewhere, 1200);
        assert_eq!(all.cover(there, 1, 1), 0);
        all.received(there, 40);
        assert_eq!(all.cover(there, 120, 120), 120);
        assert_eq!(all.cover(there, 1, 1), 0);
        // What failed is remembered for a while, what is proven is not.
        handshake.failed(SEC);
        all.tidy(SEC * 5);
        assert_eq!(all.cover(there, 1, 1), 0);
        all.tidy(SEC * 6);
        assert_eq!(all.cover(there, 5000, 1200), 5000);
        let (one, other) = (all.open(there).unwrap(), all.open(there).unwrap());
        assert_eq!(all.cover(there, 10_000, 1200), 7200);
        // One that was counted when it came is not counted once more.
        all.received(there, 1200);
        all.open(there).unwrap().failed(SEC);
        assert_eq!(all.cover(there, 10_000, 1200), 3600);
        one.finished();
        assert_eq!(all.cover(there, 5000, 1200), 5000);
        other.failed(SEC);
        assert!(!all.may_know(there));
        // Another connection's datagrams take little of it.
        let _handshake = all.open(there).unwrap();
        all.sent(there, 138);
        assert_eq!(all.cover(there, 2400, 1200), 2400);
        assert_eq!(all.cover(there, 1200, 1200), 0);
        all.sent(there, 1_000_000);
        assert_eq!(all.cover(there, 600, 600), 600);
        assert_eq!(all.cover(there, 1, 1), 0);
    }

    #[test]
    fn accounts_are_bounded() {
        let all = Arc::new(Unproven::default());
        let addr = |n: usize| SocketAddr::new("192.0.2.7".parse().unwrap(), n as u16);
        let other = |n: usize| SocketAddr::new("192.0.2.8".parse().unwrap(), n as u16);
        let held: Vec<_> = (0..MAX_ACCOUNTS).map(|n| all.open(addr(n)).unwrap()).collect();
        assert!(all.open(other(1)).is_none());
        assert!(all.open(addr(1)).is_some());
        held.into_iter().for_each(|handshake| handshake.failed(SEC));
        all.tidy(SEC * 6);
        assert!(all.open(other(1)).is_some());
    }
}
