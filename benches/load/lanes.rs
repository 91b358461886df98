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
/// Not to be counted: sent before the load.
pub const TRIAL: u8 = 3;
/// The kind, and when it was sent.
pub const STAMPED_BYTES: usize = 9;

/// What goes to the kernel at once, at most: a UDP payload's length is 16 bits, less headers.
const MAX_TRAIN_BYTES: usize = 64_000;
/// The same, in packets (UDP_MAX_SEGMENTS).
const MAX_TRAIN_PACKETS: usize = 64;
/// What the relays put before a payload is at most this long.
const MAX_HEADER_BYTES: usize = 8;

/// How many packets with this payload go at once, at most; the same for all transports.
pub fn longest_train(size: usize) -> usize {
    (MAX_TRAIN_BYTES / (size + MAX_HEADER_BYTES)).clamp(1, MAX_TRAIN_PACKETS)
}

/// One of the two that talk through the relay.
pub enum Client {
    /// A UDP socket and nothing between it and the relay but a header, perhaps.
    Udp(udp::Client),
    /// Datagrams of a session, raw or not.
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
    /// Payloads end to end, as many as go at once.
    train: Mutex<Vec<u8>>,
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
            train: Mutex::new(vec![PLAIN; size * longest_train(size)]),
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
            Client::Datagrams(session) if count > 1 => self.send_train(session, stamp, count),
            Client::Datagrams(session) => u64::from(session.send_datagram(self.payload(stamp)).is_ok()),
            // Its writer counts, once it is written.
            Client::Outlet(outlet) => {
                return match outlet.try_send(self.payload(stamp)) {
                    Ok(()) => Offered::Sent,
                    Err(_) => Offered::Refused,
                };
            }
        };
        self.sent.fetch_add(sent, Relaxed);
        self.refused.fetch_add(count - sent, Relaxed);
        if sent > 0 { Offered::Sent } else { Offered::Refused }
    }

    /// Sends payloads in one call, the first with a stamp. Answers how many have gone.
    fn send_train(&self, session: &Session, stamp: Option<[u8; STAMPED_BYTES]>, count: u64) -> u64 {
        let mut train = self.train.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = train.first_chunk_mut() {
            *first = stamp.unwrap_or([PLAIN; STAMPED_BYTES]);
        }
        let wanted = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(self.size);
        session.send_train(train.get(..wanted).unwrap_or(&train), self.size).map_or(0, |sent| sent as u64)
    }

    fn payload(&self, stamp: Option<[u8; STAMPED_BYTES]>) -> Bytes {
        let Some(stamp) = stamp else { return self.plain.clone() };
        let mut payload = vec![PLAIN; self.size];
        if let Some(stamped) = payload.first_chunk_mut() {
            *stamped = stamp;
        }
        payload.into()
    }

    /// Counts what arrived together, sends samples back, takes the times of those that came back.
    pub fn arrived<'a>(&self, lane: &Lane, role: usize, payloads: impl Iterator<Item = &'a [u8]>) {
        let (mut count, mut bytes) = (0, 0);
        for payload in payloads {
            match payload.first() {
                Some(&TRIAL) => continue,
                Some(&PLAIN) | None => {}
                Some(_) => self.answer(lane, role, payload),
            }
            count += 1;
            bytes += payload.len() as u64;
        }
        self.delivered.fetch_add(count, Relaxed);
        self.delivered_bytes.fetch_add(bytes, Relaxed);
    }

    fn answer(&self, lane: &Lane, role: usize, payload: &[u8]) {
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

    /// The share of the sessions' datagrams that went beside QUIC; `None` without sessions.
    pub fn raw_share(&self) -> Option<f64> {
        let (mut raw, mut all) = (0, 0);
        for client in self.lanes.iter().flat_map(|lane| &lane.0) {
            if let Client::Datagrams(session) = client {
                let stats = session.stats();
                raw += stats.raw_sent + stats.raw_received;
                all += stats.datagrams_sent + stats.datagrams_received;
            }
        }
        (all > 0).then(|| raw as f64 / all as f64)
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
