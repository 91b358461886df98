//! Streams from one leg to the other: spliced in order of opening, with FIN, RESET and STOP_SENDING.
//!
//! Back-pressure is QUIC's own: a pump holds one chunk at most and reads the next only when that one has been
//! taken, so a slow receiver fills its sender's stream window and nothing else.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::task::JoinSet;

use super::{hub::Hub, leg::Leg};
use crate::{table::Denied, wire::CloseCode};

/// The most that one pump holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// A stream over its rate sleeps at least this long, so that it goes on with packets, not with single bytes.
const MIN_RATE_WAIT: Duration = Duration::from_millis(2);

/// How often to look for a reset behind data that the receiver does not take.
const RESET_INTERVAL: Duration = Duration::from_millis(250);

/// Accepts this leg's streams of both kinds and splices them, until the connection is over.
pub(super) async fn splice_streams(hub: Arc<Hub>, leg: Arc<Leg>) {
    tokio::join!(splice_bidirectional(&hub, &leg), splice_unidirectional(&hub, &leg));
}

async fn splice_bidirectional(hub: &Arc<Hub>, leg: &Arc<Leg>) {
    let mut splices = JoinSet::new();
    while let Some((here_send, here_recv)) = accept(leg, &mut splices, || leg.connection.accept_bi()).await {
        let (other, (there_send, there_recv)) =
            open(leg, |other| async move { other.connection.open_bi().await }).await;
        hub.metrics.streams(true).inc();
        let (hub, leg) = (hub.clone(), leg.clone());
        splices.spawn(async move {
            tokio::join!(pump(&hub, &leg, here_recv, there_send), pump(&hub, &other, there_recv, here_send));
        });
    }
}

async fn splice_unidirectional(hub: &Arc<Hub>, leg: &Arc<Leg>) {
    let mut splices = JoinSet::new();
    while let Some(here_recv) = accept(leg, &mut splices, || leg.connection.accept_uni()).await {
        let (_, there_send) = open(leg, |other| async move { other.connection.open_uni().await }).await;
        hub.metrics.streams(false).inc();
        let (hub, leg) = (hub.clone(), leg.clone());
        splices.spawn(async move { pump(&hub, &leg, here_recv, there_send).await });
    }
}

/// The next stream that the client opened; `None` when the connection is over. Without a peer, streams stay
/// where they are.
async fn accept<T, F>(leg: &Leg, splices: &mut JoinSet<()>, accept: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, ConnectionError>>,
{
    let accepted = async {
        leg.linked().await;
        accept().await.ok()
    };
    let mut accepted = pin!(accepted);
    loop {
        tokio::select! {
            accepted = &mut accepted => return accepted,
            // Reap, so that the set holds live splices only. A panic in one ends the session: see session.rs.
            Some(ended) = splices.join_next() => if let Err(error) = ended && error.is_panic() {
                std::panic::resume_unwind(error.into_panic());
            },
        }
    }
}

/// Opens a stream on whichever leg is the other one by the time it has room for it.
async fn open<T, F>(leg: &Leg, open: impl Fn(Arc<Leg>) -> F) -> (Arc<Leg>, T)
where
    F: Future<Output = Result<T, ConnectionError>>,
{
    loop {
        let other = leg.linked().await;
        tokio::select! {
            opened = open(other.clone()) => match opened {
                Ok(opened) => return (other, opened),
                // Its session is about to tell the hub; nothing has been read, so nothing is lost.
                Err(_) => leg.link_leaves(&other).await,
            },
            () = leg.link_leaves(&other) => {}
        }
    }
}

/// How one direction of a splice ended.
enum End {
    /// The sender is done; so is the receiver.
    Finished,
    /// The sender gave up with this code.
    Reset(VarInt),
    /// The receiver wants no more, with this code.
    Stopped(VarInt),
}

fn relay_code(code: CloseCode) -> VarInt {
    VarInt::from_u64(code.reset_code()).unwrap_or(VarInt::MAX)
}

/// Copies one direction, from `recv` on the leg `from` to `send` on the other, and passes its end on.
async fn pump(hub: &Hub, from: &Leg, mut recv: RecvStream, mut send: SendStream) {
    let end = copy(hub, from, &mut recv, &mut send).await;
    // The errors say that the stream is already over in the way we ask for.
    match end {
        End::Finished => {
            let _ = send.finish();
        }
        End::Reset(code) => {
            let _ = send.reset(code);
            let _ = recv.stop(code);
        }
        End::Stopped(code) => {
            let _ = recv.stop(code);
            let _ = send.reset(code);
        }
    }
}

async fn copy(hub: &Hub, from: &Leg, recv: &mut RecvStream, send: &mut SendStream) -> End {
    let mut stopped = pin!(send.stopped());
    loop {
        let read = tokio::select! {
            biased;
            stopped = &mut stopped => return end_of_receiver(stopped),
            read = recv.read_chunk(CHUNK_BYTES, true) => read,
        };
        let mut rest = match read {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => return End::Finished,
            Err(ReadError::Reset(code)) => return End::Reset(code),
            Err(_) => return End::Reset(relay_code(CloseCode::PeerGone)),
        };
        while !rest.is_empty() {
            let delivered = tokio::select! {
                biased;
                delivered = deliver(hub, from, &mut rest, send) => delivered,
                stopped = &mut stopped => return end_of_receiver(stopped),
                code = reset_of(recv) => return End::Reset(code),
            };
            if let Err(end) = delivered {
                return end;
            }
        }
    }
}

/// Charges for as much of `rest` as may pass now and writes that much, waiting for rate and for room.
///
/// Dropped in the middle, it gives back what was charged and not written.
async fn deliver(hub: &Hub, from: &Leg, rest: &mut Bytes, send: &mut SendStream) -> Result<(), End> {
    let granted_bytes = loop {
        match from.meter.charge_stream(hub.clock.nanos(), from.role, rest.len()) {
            Ok(granted_bytes) => break granted_bytes,
            Err(Denied::Quota) => {
                hub.quota_exceeded(from);
                return Err(End::Reset(relay_code(CloseCode::QuotaExceeded)));
            }
            Err(Denied::ByteRate(wait) | Denied::PacketRate(wait)) => {
                tokio::time::sleep(wait.max(MIN_RATE_WAIT)).await;
            }
            // A burst holds at least one byte, so this does not happen; were it to, waiting is right.
            Err(Denied::OverBurst) => tokio::time::sleep(MIN_RATE_WAIT).await,
        }
    };
    let mut charge = Charge { from, unwritten_bytes: granted_bytes };
    let mut parts = [rest.split_to(granted_bytes)];
    while charge.unwritten_bytes > 0 {
        match send.write_chunks(&mut parts).await {
            Ok(written) => {
                charge.unwritten_bytes -= written.bytes;
                hub.metrics.forwarded(from.role).stream_bytes.inc_by(written.bytes as u64);
            }
            Err(WriteError::Stopped(code)) => return Err(End::Stopped(code)),
            Err(_) => return Err(End::Stopped(relay_code(CloseCode::PeerGone))),
        }
    }
    Ok(())
}

/// Gives back what was charged for bytes that were never written.
struct Charge<'a> {
    from: &'a Leg,
    unwritten_bytes: usize,
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if self.unwritten_bytes > 0 {
            self.from.meter.refund_stream(self.from.role, self.unwritten_bytes);
        }
    }
}

fn end_of_receiver(stopped: Result<Option<VarInt>, StoppedError>) -> End {
    match stopped {
        Ok(Some(code)) => End::Stopped(code),
        // Nothing is acknowledged to the end before it is finished; the connection is gone.
        Ok(None) | Err(_) => End::Stopped(relay_code(CloseCode::PeerGone)),
    }
}

/// Waits until the sender resets the stream, or its connection is lost; forever, if it has already finished.
///
/// quinn's own `received_reset` leaves a waker behind that nothing takes away when the stream is later read to
/// its end without waiting. Reading nothing instead takes no data and leaves a waker only where there is none
/// to take, so that the next packet removes it; while data waits, look again from time to time.
async fn reset_of(recv: &mut RecvStream) -> VarInt {
    loop {
        match recv.read_chunk(0, true).await {
            Ok(Some(_)) => tokio::time::sleep(RESET_INTERVAL).await,
            Ok(None) => std::future::pending().await,
            Err(ReadError::Reset(code)) => return code,
            Err(_) => return relay_code(CloseCode::PeerGone),
        }
    }
}
