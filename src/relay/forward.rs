//! Datagrams from one leg to the other: the packet path.
//!
//! Read, find the other leg, charge, send. No map, no lock that another allocation uses; but for small ones no
//! allocation of memory, the payload is the buffer it arrived in.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use quinn::SendDatagramError;
use tokio::task::coop::consume_budget;

use super::{hub::Hub, latency, leg::Leg};
use crate::{
    guard::{Limit, SecurityEvent, Subject},
    metrics::DropReason,
    table::Denied,
};

/// Smaller payloads are copied. In the buffer that it arrived in a datagram keeps the rest of its packet train
/// for as long as it waits to be sent, which the send buffer's bound does not see.
const MIN_SHARED_BYTES: usize = 1024;

/// Forwards until the connection is over.
pub(super) async fn forward_datagrams(hub: Arc<Hub>, leg: Arc<Leg>) {
    loop {
        leg.datagrams.reader_waits.store(true, Ordering::Release);
        let Ok(payload) = leg.connection.read_datagram().await else { return };
        leg.datagrams.reader_waits.store(false, Ordering::Relaxed);
        leg.datagrams.read.fetch_add(1, Ordering::Relaxed);
        // A full buffer of tiny ones would hold the shard for tens of milliseconds, and quinn does not count them.
        consume_budget().await;
        forward_datagram(&hub, &leg, payload);
    }
}

/// Hands one datagram to the other leg as a QUIC datagram, or counts why not.
pub(super) fn forward_datagram(hub: &Hub, leg: &Leg, payload: Bytes) {
    let bytes = payload.len();
    if let Err(reason) = forward(hub, leg, payload) {
        not_forwarded(hub, leg, bytes, reason);
    }
}

/// Counts a datagram that was not forwarded; one that was too much for the quota ends the allocation.
pub(super) fn not_forwarded(hub: &Hub, leg: &Leg, bytes: usize, reason: DropReason) {
    hub.metrics.dropped(reason, 1);
    tracing::trace!(allocation = %leg.handle, connection = leg.id.0, reason = reason.name(), "datagram dropped");
    if matches!(reason, DropReason::ByteRate | DropReason::PacketRate | DropReason::GlobalRate) {
        leg.meter.count_dropped(bytes);
    }
    match reason {
        DropReason::Quota => hub.quota_exceeded(leg),
        DropReason::ByteRate => over_rate(hub, leg, Limit::ByteRate),
        DropReason::PacketRate => over_rate(hub, leg, Limit::PacketRate),
        _ => {}
    }
}

/// Says so, at most once a second.
fn over_rate(hub: &Hub, leg: &Leg, limit: Limit) {
    if leg.is_over_rate_news(hub.clock.mono()) {
        let subject = Subject::NOBODY.on(leg.id).of(leg.handle);
        hub.security.emit(SecurityEvent::LimitHit { limit }, subject);
    }
}

/// How a refused charge is counted.
pub(super) fn drop_reason(denied: Denied) -> DropReason {
    match denied {
        Denied::ByteRate(_) | Denied::OverBurst => DropReason::ByteRate,
        Denied::PacketRate(_) => DropReason::PacketRate,
        Denied::GlobalRate(_) => DropReason::GlobalRate,
        Denied::Quota => DropReason::Quota,
    }
}

/// Hands one datagram to the other leg, or says why not. Charged only when handed over.
fn forward(hub: &Hub, leg: &Leg, payload: Bytes) -> Result<(), DropReason> {
    let link = leg.link();
    let Some(other) = link.as_ref() else { return Err(DropReason::NoPeer) };
    let bytes = payload.len();
    // quinn evicts the oldest when its buffer is full, so look first: the newest is the one to drop.
    if !other.has_room_for(bytes) {
        return Err(DropReason::BufferFull);
    }
    leg.meter.charge_datagram(hub.clock.nanos(), leg.role, bytes).map_err(drop_reason)?;
    if let Err(error) = other.connection.send_datagram(detached(payload)) {
        leg.meter.refund_datagram(leg.role, bytes);
        return Err(match error {
            SendDatagramError::TooLarge => DropReason::TooLarge,
            _ => DropReason::SendFailed,
        });
    }
    other.datagrams.handed.fetch_add(1, Ordering::Relaxed);
    let forwarded = hub.metrics.forwarded(leg.role);
    forwarded.datagrams.inc();
    forwarded.datagram_bytes.inc_by(bytes as u64);
    if let Some(read_nanos) = hub.reads.measured(leg.shard) {
        latency::observe(&hub.metrics, false, read_nanos, hub.clock.nanos());
    }
    Ok(())
}

/// The payload, in a buffer of about its own size.
fn detached(payload: Bytes) -> Bytes {
    if payload.len() < MIN_SHARED_BYTES { Bytes::copy_from_slice(&payload) } else { payload }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, task::Poll};

    use super::*;
    use crate::{
        relay::tests::{Harness, hub, leg, soon},
        wire::Role,
    };

    #[test]
    fn a_small_datagram_does_not_keep_the_packets_it_came_in() {
        let train = Bytes::from(vec![7; 65536]);
        for (bytes, shared) in [(0, false), (1, false), (1023, false), (1024, true), (1400, true)] {
            let payload = detached(train.slice(..bytes));
            assert_eq!(payload, train.slice(..bytes));
            assert_eq!(!train.is_unique(), shared, "{bytes}");
        }
    }

    #[tokio::test]
    async fn a_full_buffer_of_tiny_datagrams_does_not_hold_the_shard() {
        let harness = Harness::start();
        let (device, peer) = harness.joined_pair(&harness.pair()).await;
        for _ in 0..500 {
            device.send_datagram(Bytes::new());
        }
        soon(async {
            while peer.connection().stats().frame_rx.datagram < 500 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        // Nobody is linked to this leg, so each is read and dropped; what counts is how many at once.
        let (hub, leg) = (Arc::new(hub(&harness)), Arc::new(leg(&harness, &peer, Role::Peer)));
        let mut forwarding = pin!(forward_datagrams(hub, leg.clone()));
        let read = || leg.datagrams.read.load(Ordering::Relaxed);
        let mut turns = 0;
        soon(async {
            while read() < 500 {
                let before = read();
                poll_fn(|context| Poll::Ready(forwarding.as_mut().poll(context).is_ready())).await;
                assert!(read() - before < 200, "{} in one turn", read() - before);
                turns += 1;
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(turns > 2, "{turns}");
    }
}
