//! One allocation: which connections of which side are here, and when it ends if nothing more happens.

use std::{mem, sync::Arc, time::Duration};

use super::{Basis, ConnId, Grant, Meter, Now, Rules};
use crate::wire::{CloseCode, Handle, Identity, Role, TokenHash};

/// A live allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) identity: Arc<Identity>,
    pub(super) handle: Handle,
    pub(super) meter: Arc<Meter>,
    pub(super) created: Now,
    /// Of the token in force.
    pub(super) expires_at_unix: u64,
    /// The latest of any token that was shown for it: until then its use must not be forgotten.
    pub(super) latest_expires_at_unix: u64,
    /// Of the token in force.
    pub(super) token_hash: TokenHash,
    /// Of the token in force.
    pub(super) basis: Basis,
    pub(super) sides: Sides,
    /// What the table's list of deadlines has for it, on the monotonic clock.
    pub(super) due: Duration,
}

impl Allocation {
    /// When the monotonic clock ends it, and why, if nobody comes or goes before.
    pub(super) fn next_end(&self, rules: &Rules) -> (Duration, CloseCode) {
        let after = |since: Duration, timeout: Duration| since.saturating_add(timeout);
        let timeout = (after(self.created.mono, rules.allocation_timeout), CloseCode::Expired);
        let pair = match &self.sides {
            Sides::Waiting { .. } => {
                Some((after(self.created.mono, rules.pair_timeout), CloseCode::PairTimeout))
            }
            Sides::Met { .. } => None,
        };
        let gone = Role::BOTH.into_iter().filter_map(|role| match self.sides.presence(role)? {
            Presence::Here(_) => None,
            Presence::Away { since } => Some((after(*since, rules.idle_timeout), CloseCode::PeerGone)),
        });
        gone.chain(pair).fold(timeout, |first, other| if other.0 < first.0 { other } else { first })
    }

    /// What its clients are told.
    pub(super) fn grant(&self) -> Grant {
        Grant {
            expires_at_unix: self.expires_at_unix,
            limits: self.meter.limits(),
            burst_bytes: self.meter.burst_bytes(),
            bytes_used: self.meter.bytes_used(),
        }
    }
}

/// How far an allocation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The second side has not come yet.
    Waiting,
    /// Both sides are here.
    Paired,
    /// Both have been here; one of them is away.
    Interrupted,
    /// Nobody is here.
    Deserted,
}

/// Both sides of an allocation. Whoever creates it is one of them, so there is no allocation that nobody
/// ever came to.
#[derive(Debug)]
pub(super) enum Sides {
    /// Only one side has come so far.
    Waiting { first: Role, presence: Presence },
    /// Both sides have come at some time.
    Met { device: Presence, peer: Presence },
}

/// A side that has come.
#[derive(Debug)]
pub(super) enum Presence {
    Here(Connections),
    /// Its last connection left then, on the monotonic clock.
    Away {
        since: Duration,
    },
}

/// At least one connection of one side.
#[derive(Debug)]
pub(super) struct Connections {
    /// Oldest first.
    older: Vec<ConnId>,
    /// The one that traffic goes to.
    newest: ConnId,
}

impl Sides {
    /// The first connection of all.
    pub(super) fn new(role: Role, conn: ConnId) -> Self {
        Self::Waiting { first: role, presence: Presence::here(conn) }
    }

    /// How far this has come.
    pub(super) fn stage(&self) -> Stage {
        let is_here = |role| self.newest(role).is_some();
        match (self, is_here(Role::Device), is_here(Role::Peer)) {
            (_, false, false) => Stage::Deserted,
            (Self::Waiting { .. }, ..) => Stage::Waiting,
            (Self::Met { .. }, true, true) => Stage::Paired,
            (Self::Met { .. }, ..) => Stage::Interrupted,
        }
    }

    /// Where traffic for this side goes.
    pub(super) fn newest(&self, role: Role) -> Option<ConnId> {
        match self.presence(role)? {
            Presence::Here(connections) => Some(connections.newest),
            Presence::Away { .. } => None,
        }
    }

    /// This side's connections, oldest first.
    pub(super) fn connections(&self, role: Role) -> impl Iterator<Item = ConnId> + '_ {
        let here = match self.presence(role) {
            Some(Presence::Here(connections)) => Some(connections),
            Some(Presence::Away { .. }) | None => None,
        };
        here.into_iter().flat_map(|here| here.older.iter().copied().chain([here.newest]))
    }

    /// Adds a connection, the newest of its side; answers with those that are now too many, oldest first.
    pub(super) fn arrive(&mut self, role: Role, conn: ConnId, most: usize) -> Vec<ConnId> {
        match self.presence_mut(role) {
            Some(Presence::Here(connections)) => return connections.push(conn, most),
            Some(away) => *away = Presence::here(conn),
            None => self.meet(conn),
        }
        Vec::new()
    }

    /// Takes a connection away.
    pub(super) fn depart(&mut self, role: Role, conn: ConnId, now: Now) {
        let Some(presence) = self.presence_mut(role) else { return };
        let Presence::Here(connections) = presence else { return };
        if connections.newest != conn {
            connections.older.retain(|older| *older != conn);
        } else if let Some(next) = connections.older.pop() {
            connections.newest = next;
        } else {
            *presence = Presence::Away { since: now.mono };
        }
    }

    /// The side that was awaited has come.
    fn meet(&mut self, second: ConnId) {
        if let Self::Waiting { first, presence } = self {
            let mut device = Presence::here(second);
            let mut peer = mem::replace(presence, Presence::here(second));
            if *first == Role::Device {
                mem::swap(&mut device, &mut peer);
            }
            *self = Self::Met { device, peer };
        }
    }

    fn presence(&self, role: Role) -> Option<&Presence> {
        match (self, role) {
            (Self::Waiting { first, presence }, _) => (*first == role).then_some(presence),
            (Self::Met { device, .. }, Role::Device) => Some(device),
            (Self::Met { peer, .. }, Role::Peer) => Some(peer),
        }
    }

    fn presence_mut(&mut self, role: Role) -> Option<&mut Presence> {
        match (self, role) {
            (Self::Waiting { first, presence }, _) => (*first == role).then_some(presence),
            (Self::Met { device, .. }, Role::Device) => Some(device),
            (Self::Met { peer, .. }, Role::Peer) => Some(peer),
        }
    }
}

impl Presence {
    fn here(conn: ConnId) -> Self {
        Self::Here(Connections { older: Vec::new(), newest: conn })
    }
}

impl Connections {
    fn push(&mut self, conn: ConnId, most: usize) -> Vec<ConnId> {
        self.older.push(mem::replace(&mut self.newest, conn));
        let excess = self.older.len().saturating_sub(most.saturating_sub(1));
        self.older.drain(..excess).collect()
    }
}
