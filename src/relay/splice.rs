//! Streams from one leg to the other: spliced in order of opening, with FIN, RESET and STOP_SENDING.
//!
//! Back-pressure is QUIC's own: a pump holds what a few packets brought and reads on only when that has been
//! taken, so a slow receiver fills its sender's stream window and nothing else.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::{ConnectionError, Dir, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::task::{JoinSet, coop::consume_budget};

use super::{hub::Hub, leg::Leg, tls};
use crate::{table::Denied, wire::CloseCode};

/// What one pump reads at once, and holds: so many packets' worth. Each costs a look at the meter and two of QUIC's
/// locks together, not by itself.
const MAX_CHUNKS: usize = 24;
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
    let mut streams = 0_u64;
    while let Some((here_send, here_recv)) = accept(leg, &mut splices, || leg.connection.accept_bi()).await {
        streams += 1;
        allow_more(leg, Dir::Bi, streams);
        let (here_sink, here_source) = (Sink::new(here_send), Source(here_recv));
        let (other, (there_send, there_recv)) =
            Box::pin(open(leg, |other| async move { other.connection.open_bi().await })).await;
        let (there_sink, there_source) = (Sink::new(there_send), Source(there_recv));
        hub.metrics.streams(true).inc();
        let (hub, leg) = (hub.clone(), leg.clone());
        splices.spawn(async move {
            tokio::join!(
                pump(&hub, &leg, here_source, there_sink),
                pump(&hub, &other, there_source, here_sink)
            );
        });
    }
}

async fn splice_unidirectional(hub: &Arc<Hub>, leg: &Arc<Leg>) {
    let mut splices = JoinSet::new();
    let mut streams = 0_u64;
    while let Some(here_recv) = accept(leg, &mut splices, || leg.connection.accept_uni()).await {
        streams += 1;
        allow_more(leg, Dir::Uni, streams);
        let here_source = Source(here_recv);
        let (_, there_send) =
            Box::pin(open(leg, |other| async move { other.connection.open_uni().await })).await;
        let there_sink = Sink::new(there_send);
        hub.metrics.streams(false).inc();
        let (hub, leg) = (hub.clone(), leg.clone());
        splices.spawn(async move { pump(&hub, &leg, here_source, there_sink).await });
    }
}

/// A stream that is being sent. Given up before its end was passed on, as when its session ends, it is reset:
/// quinn by itself would finish it, and what was cut off would look whole to its receiver.
struct Sink {
    stream: SendStream,
    finished: bool,
}

impl Sink {
    fn new(stream: SendStream) -> Self {
        Self { stream, finished: false }
    }

    // The errors here and below say that the stream is already over in the way we ask for.

    fn finish(mut self) {
        let _ = self.stream.finish();
        self.finished = true;
    }

    fn reset(mut self, code: VarInt) {
        let _ = self.stream.reset(code);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            // Does nothing to a stream that is reset already.
            let _ = self.stream.reset(relay_code(CloseCode::PeerGone));
        }
    }
}

/// A stream that is being received. Given up before its end, it is stopped with a code that says why.
struct Source(RecvStream);

impl Source {
    fn stop(mut self, code: VarInt) {
        let _ = self.0.stop(code);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Does nothing to a stream that was read to its end or is stopped already.
        let _ = self.0.stop(relay_code(CloseCode::PeerGone));
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

/// Gives a client that uses streams room for all that it may have, before it runs into the first limit.
fn allow_more(leg: &Leg, kind: Dir, streams: u64) {
    if streams == u64::from(tls::FIRST_STREAMS_PER_KIND / 2) {
        tls::allow_streams(&leg.connection, kind, tls::MAX_STREAMS_PER_KIND);
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

/// Copies one direction, from `source` on the leg `from` to `sink` on the other, and passes its end on.
async fn pump(hub: &Hub, from: &Leg, mut source: Source, mut sink: Sink) {
    match copy(hub, from, &mut source.0, &mut sink.stream).await {
        End::Finished => sink.finish(),
        End::Reset(code) | End::Stopped(code) => {
            sink.reset(code);
            source.stop(code);
        }
    }
}

async fn copy(hub: &Hub, from: &Leg, recv: &mut RecvStream, send: &mut SendStream) -> End {
    let mut stopped = pin!(send.stopped());
    let mut chunks: [Bytes; MAX_CHUNKS] = Default::default();
    loop {
        let read = tokio::select! {
            biased;
            stopped = &mut stopped => return end_of_receiver(stopped),
            read = recv.read_chunks(&mut chunks) => read,
        };
        let mut rest = match read {
            Ok(Some(count)) => gathered(chunks.get_mut(..count).unwrap_or_default()),
            Ok(None) => return End::Finished,
            Err(ReadError::Reset(code)) => return End::Reset(code),
            Err(_) => return End::Reset(relay_code(CloseCode::PeerGone)),
        };
        // A window full of single bytes would hold the shard for long, and quinn does not count them.
        consume_budget().await;
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

/// The chunks' bytes, in a buffer of their own. As they are, each would keep the whole packet train that it arrived
/// in for as long as the receiver does not acknowledge it: a thousand bytes and more for a stream's single one. And
/// what waits to be acknowledged is found the sooner, the fewer pieces it is in.
fn gathered(chunks: &mut [Bytes]) -> Bytes {
    let mut all = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in chunks {
        all.extend_from_slice(&std::mem::take(chunk));
    }
    all.freeze()
}

/// Writes as much of `rest` as rate, quota and the receiver's room let pass now, waiting until that is something.
///
/// Cancel-safe: what is charged is what was written.
async fn deliver(hub: &Hub, from: &Leg, rest: &mut Bytes, send: &mut SendStream) -> Result<(), End> {
    let wait = match poll_fn(|context| poll_deliver(hub, from, rest, send, context)).await {
        Ok(()) => return Ok(()),
        Err(Undelivered::Refused(error)) => {
            return Err(End::Stopped(match error {
                WriteError::Stopped(code) => code,
                _ => relay_code(CloseCode::PeerGone),
            }));
        }
        Err(Undelivered::Denied(Denied::Quota)) => {
            hub.quota_exceeded(from);
            return Err(End::Reset(relay_code(CloseCode::QuotaExceeded)));
        }
        Err(Undelivered::Denied(
            Denied::ByteRate(wait) | Denied::PacketRate(wait) | Denied::GlobalRate(wait),
        )) => wait,
        // A burst holds at least one byte, so this does not happen; were it to, waiting is right.
        Err(Undelivered::Denied(Denied::OverBurst)) => MIN_RATE_WAIT,
    };
    tokio::time::sleep(wait.max(MIN_RATE_WAIT)).await;
    Ok(())
}

/// Why nothing of a chunk was written.
enum Undelivered {
    Denied(Denied),
    Refused(WriteError),
}

/// One attempt. The charge and its refund are never further apart than this: a stream that waits for room holds
/// neither quota that it has not used nor rate that it could spend later, all at once.
fn poll_deliver(
    hub: &Hub,
    from: &Leg,
    rest: &mut Bytes,
    send: &mut SendStream,
    context: &mut Context<'_>,
) -> Poll<Result<(), Undelivered>> {
    let granted_bytes = match from.meter.charge_stream(hub.clock.nanos(), from.role, rest.len()) {
        Ok(granted_bytes) => granted_bytes,
        Err(denied) => return Poll::Ready(Err(Undelivered::Denied(denied))),
    };
    let mut granted = [rest.slice(..granted_bytes.min(rest.len()))];
    let attempt = pin!(send.write_chunks(&mut granted)).poll(context);
    let written_bytes = match &attempt {
        Poll::Ready(Ok(written)) => written.bytes,
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    };
    if written_bytes < granted_bytes {
        from.meter.refund_stream(from.role, granted_bytes - written_bytes);
    }
    rest.advance(written_bytes);
    if from.notices.mark_is_near(from.meter.bytes_used()) {
        // At once, because what streams carry may be gone before the next sweep.
        from.tell_usage();
        if let Some(other) = &*from.link() {
            other.tell_usage();
        }
    }
    hub.metrics.forwarded(from.role).stream_bytes.inc_by(written_bytes as u64);
    attempt.map(|attempt| attempt.map(|_| ()).map_err(Undelivered::Refused))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        relay::tests::{Harness, hub, leg},
        wire::Role,
    };

    #[tokio::test]
    async fn what_waits_to_be_acknowledged_does_not_keep_the_packets_it_came_in() {
        let harness = Harness::start();
        let (device, _peer) = harness.joined_pair(&harness.pair()).await;
        let hub = hub(&harness);
        let leg = leg(&harness, &device, Role::Device);
        let mut send = device.connection().open_uni().await.unwrap();
        let train = Bytes::from(vec![7; 65536]);
        let mut chunks = [train.slice(..1), train.slice(9..11), Bytes::new()];
        let mut rest = gathered(&mut chunks);
        // Nothing is sent, less acknowledged, before this task waits for something.
        assert!(deliver(&hub, &leg, &mut rest, &mut send).await.is_ok());
        assert!(train.is_unique());
        assert_eq!(leg.meter.bytes_used(), 3);
    }
}
