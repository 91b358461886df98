//! What the relay remembers of identities, so that neither use nor a final end is undone by coming back.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{Meter, table::Key};
use crate::wire::{CloseCode, Identity};

/// One entry per identity that is live or must not be forgotten yet. Each live allocation has its entry from
/// its beginning, so its end always finds room; entries go when the last token seen for them has expired,
/// never to make room.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Arc<Identity>, Entry>,
    /// Which of them are over, by the unix second in which they are forgotten.
    expiries: BTreeSet<(u64, Arc<Identity>)>,
}

/// What is known of an identity.
#[derive(Debug)]
pub(super) enum Entry {
    /// It has an allocation.
    Live(Key),
    /// Its allocation is over.
    Over { until_unix: u64, past: Past },
}

/// How an allocation ended.
#[derive(Debug, Clone)]
pub(super) enum Past {
    /// For good: with RELEASED, KILLED or QUOTA_EXCEEDED.
    Final(CloseCode),
    /// It may come back, and goes on with the same meter. The meter itself is kept and not its reading,
    /// because a session on another thread may charge it until it hears of the end.
    Used(Arc<Meter>),
}

impl Ledger {
    /// Live and remembered together.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, identity: &Identity) -> Option<&Entry> {
        self.entries.get(identity)
    }

    /// The identity has an allocation from now on.
    pub(super) fn begin(&mut self, identity: Arc<Identity>, key: Key) {
        if let Some(Entry::Over { until_unix, .. }) = self.entries.insert(identity.clone(), Entry::Live(key))
        {
            self.expiries.remove(&(until_unix, identity));
        }
    }

    /// The identity's allocation is over; `None` when there is nothing to remember of it.
    pub(super) fn end(&mut self, identity: Arc<Identity>, until_unix: u64, past: Option<Past>) {
        match past {
            None => {
                self.entries.remove(&identity);
            }
            Some(past) => {
                self.entries.insert(identity.clone(), Entry::Over { until_unix, past });
                self.expiries.insert((until_unix, identity));
            }
        }
    }

    /// A token was seen for an identity that may be over: it is remembered as long as that token lives.
    pub(super) fn keep_until(&mut self, identity: &Identity, unix: u64) {
        if let Some((identity, _)) = self.entries.get_key_value(identity)
            && let identity = identity.clone()
            && let Some(Entry::Over { until_unix, .. }) = self.entries.get_mut(&identity)
        {
            self.expiries.remove(&(*until_unix, identity.clone()));
            *until_unix = unix.max(*until_unix);
            self.expiries.insert((*until_unix, identity));
        }
    }

    /// Forgets what no valid token can come back to.
    pub(super) fn forget(&mut self, now_unix: Duration) {
        while let Some((until_unix, _)) = self.expiries.first()
            && Duration::from_secs(*until_unix) <= now_unix
            && let Some((_, identity)) = self.expiries.pop_first()
        {
            self.entries.remove(&identity);
        }
    }

    /// The unix second in which something is forgotten next.
    pub(super) fn next_forget_unix(&self) -> Option<u64> {
        self.expiries.first().map(|(until_unix, _)| *until_unix)
    }

    /// That exactly those that are over wait to be forgotten; answers how many are live.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) -> usize {
        let over = self.entries.iter().filter_map(|(identity, entry)| match entry {
            Entry::Over { until_unix, .. } => Some((*until_unix, identity.clone())),
            Entry::Live(_) => None,
        });
        assert_eq!(self.expiries, over.collect());
        self.entries.len() - self.expiries.len()
    }
}
