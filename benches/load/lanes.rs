//! What is put on the relay, and what comes out: the pairs, what they sent and got, and how long it took.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use zrc_relay::{client::Session, clock::Clock};

use super::{pace::Turn, udp};

/// After the last was sent: how long without any arrival until the rest counts as lost.
const QUIET: Duration = Duration::from_millis(200);
/// The same, at most, however many still arrive.
const DRAIN: Duration = Duration::from_secs(3);

/// The first byte of everything that is sent: no answer wanted; send it back; sent back.
pub const PLAIN: u8 = 0;
const SAMPLE: u8 = 1;
const ECHO: u8 = 2;
/// The kind, and when it was sent.
pub const STAMPED_BYTES: usize = 9;

/// One of the two that talk through the relay.
pub enum Client {
    /// A UDP socket and nothing between it and the relay but a header, perhaps.
    Udp(udp::Client),
    /// Datagrams of a session.
    Datagrams(Session),
    /// Records that a task writes to a stream.
    Outlet(mpsc::Sender<Bytes>),
}

/// Two clients: the device, which takes the times, and its peer.
pub struct Lane(pub [Client; 2]);

/// Whether there was room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is on its way, or waits to be written.
    Sent,
    /// There is no room, or nobody to take it.
    Refused,
}

/// What has happened so far.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Packets or records that were sent.
    pub sent: u64,
    /// Those for which the sender had no room.
    pub refused: u64,
    /// Those that arrived.
    pub delivered: u64,
    /// Their payload.
    pub delivered_bytes: u64,
}

impl Counts {
    /// What has been added to an earlier count.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sent: self.sent - earlier.sent,
            refused: self.refused - earlier.refused,
            delivered: self.delivered - earlier.delivered,
            delivered_bytes: self.delivered_bytes - earlier.delivered_bytes,
        }
    }
}

/// All pairs, and what is counted.
pub struct Load {
    pub lanes: Vec<Lane>,
    /// Of a packet's payload, or of a record, in bytes.
    pub size: usize,
    plain: Bytes,
    clock: Clock,
    sent: AtomicU64,
    refused: AtomicU64,
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    rtts_us: Mutex<Vec<u64>>,
}

impl Load {
    pub fn new(lanes: Vec<Lane>, size: usize) -> Self {
        Self {
            lanes,
            size,
            plain: Bytes::from(vec![PLAIN; size]),
            clock: Clock::start(),
            sent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            delivered_bytes: AtomicU64::new(0),
            rtts_us: Mutex::default(),
        }
    }

    /// Streams carry both directions at once; packets go from the device to its peer, and samples back.
    pub fn directions(&self) -> u64 {
        let streams = matches!(self.lanes.first(), Some(Lane([Client::Outlet(_), _])));
        if streams { 2 } else { 1 }
    }

    /// How many packets go at once, at most.
    pub fn longest_train(&self) -> u64 {
        match self.lanes.first() {
            Some(Lane([Client::Udp(client), _])) => client.longest_train(),
            _ => 1,
        }
    }

    pub fn counts(&self) -> Counts {
        Counts {
            sent: self.sent.load(Relaxed),
            refused: self.refused.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            delivered_bytes: self.delivered_bytes.load(Relaxed),
        }
    }

    /// The round trips sampled since this was asked last, sorted.
    pub fn take_rtts_us(&self) -> Vec<u64> {
        let mut rtts_us = std::mem::take(&mut *self.rtts_us.lock().unwrap_or_else(PoisonError::into_inner));
        rtts_us.sort_unstable();
        rtts_us
    }

    /// A writer has written a record.
    pub fn record_written(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    /// Sends what the schedule says.
    pub fn offer_turn(&self, turn: &Turn) -> Offered {
        let lane = usize::try_from(turn.pair).ok().and_then(|pair| self.lanes.get(pair));
        let client = usize::try_from(turn.direction).ok().and_then(|from| lane?.0.get(from));
        let Some(client) = client else { return Offered::Refused };
        let stamp = turn.sample.then(|| stamped_with(SAMPLE, self.clock.nanos()));
        self.offer(client, stamp, turn.count)
    }

    fn offer(&self, client: &Client, stamp: Option<[u8; STAMPED_BYTES]>, count: u64) -> Offered {
        let sent = match client {
            Client::Udp(client) => client.send(stamp, count),
            Client::Datagrams(session) => (0..count)
                .take_while(|nth| session.send_datagram(self.payload(stamp, *nth)).is_ok())
                .count() as u64,
            // Its writer counts, once it is written.
            Client::Outlet(outlet) => {
                return match outlet.try_send(self.payload(stamp, 0)) {
                    Ok(()) => Offered::Sent,
                    Err(_) => Offered::Refused,
                };
            }
        };
        self.sent.fetch_add(sent, Relaxed);
        self.refused.fetch_add(count - sent, Relaxed);
        if sent > 0 { Offered::Sent } else { Offered::Refused }
    }

    fn payload(&self, stamp: Option<[u8; STAMPED_BYTES]>, nth: u64) -> Bytes {
        let Some(stamp) = stamp.filter(|_| nth == 0) else { return self.plain.clone() };
        let mut payload = vec![PLAIN; self.size];
        if let Some(stamped) = payload.first_chunk_mut() {
            *stamped = stamp;
        }
        payload.into()
    }

    /// Counts an arrival, sends a sample back, takes the time of one that came back.
    pub fn arrived(&self, lane: &Lane, role: usize, payload: &[u8]) {
        self.delivered.fetch_add(1, Relaxed);
        self.delivered_bytes.fetch_add(payload.len() as u64, Relaxed);
        let Some([kind, nanos @ ..]) = payload.first_chunk::<STAMPED_BYTES>() else { return };
        match (*kind, role) {
            (SAMPLE, 1) => {
                // What does not fit is one sample less.
                let [_, peer] = &lane.0;
                self.offer(peer, Some(stamped_with(ECHO, u64::from_le_bytes(*nanos))), 1);
            }
            (ECHO, 0) => {
                let rtt_us = self.clock.nanos().saturating_sub(u64::from_le_bytes(*nanos)) / 1000;
                self.rtts_us.lock().unwrap_or_else(PoisonError::into_inner).push(rtt_us);
            }
            _ => {}
        }
    }

    /// Waits for what is still on its way.
    pub async fn drain(&self) {
        let started = Instant::now();
        let mut delivered = self.counts().delivered;
        let mut since = started;
        while delivered < self.counts().sent && since.elapsed() < QUIET && started.elapsed() < DRAIN {
            sleep(Duration::from_millis(2)).await;
            let now = self.counts().delivered;
            if now != delivered {
                (delivered, since) = (now, Instant::now());
            }
        }
    }
}

fn stamped_with(kind: u8, nanos: u64) -> [u8; STAMPED_BYTES] {
    let [a, b, c, d, e, f, g, h] = nanos.to_le_bytes();
    [kind, a, b, c, d, e, f, g, h]
}
