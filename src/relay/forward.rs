//! Datagrams from one leg to the other: the packet path.
//!
//! Read, find the other leg, charge, send. No map, no lock that another allocation uses, no allocation of
//! memory; the payload is the buffer it arrived in.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use quinn::SendDatagramError;

use super::{hub::Hub, leg::Leg};
use crate::{metrics::DropReason, table::Denied};

/// Forwards until the connection is over.
pub(super) async fn forward_datagrams(hub: Arc<Hub>, leg: Arc<Leg>) {
    loop {
        leg.datagrams.reader_waits.store(true, Ordering::Release);
        let Ok(payload) = leg.connection.read_datagram().await else { return };
        leg.datagrams.reader_waits.store(false, Ordering::Relaxed);
        leg.datagrams.read.fetch_add(1, Ordering::Relaxed);
        if let Err(reason) = forward(&hub, &leg, payload) {
            hub.metrics.dropped(reason, 1);
            tracing::trace!(allocation = %leg.handle, connection = leg.id.0, reason = reason.name(), "datagram dropped");
            if reason == DropReason::Quota {
                hub.quota_exceeded(&leg);
            }
        }
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
    leg.meter.charge_datagram(hub.clock.nanos(), leg.role, bytes).map_err(|denied| match denied {
        Denied::ByteRate(_) | Denied::OverBurst => DropReason::ByteRate,
        Denied::PacketRate(_) => DropReason::PacketRate,
        Denied::Quota => DropReason::Quota,
    })?;
    if let Err(error) = other.connection.send_datagram(payload) {
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
    Ok(())
}
