//! One connection, from handshake to close code.
//!
//! A session is one task that owns its connection: it lets the caller in (handshake, Hello, proof), then reads
//! and writes the control stream while two child tasks move datagrams and streams. Whatever ends it, an error,
//! a decision of the table's or a panic, its guard leaves the table and counts the end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use prometheus::IntGauge;
use quinn::{ConnectionError, SendStream, VarInt, WriteError};
use tokio::{task::JoinSet, time::timeout};

use super::{
    auth::{Rejection, exporter_binding, shown_key},
    control::{FrameReader, ReadFrameError},
    entry::Caller,
    forward::forward_datagrams,
    hub::Hub,
    leg::{Close, Leg, MAX_CHALLENGES, Origin, Outbox, PathLimits},
    shard::{RESTLESS, Shard, report_restless},
    splice::splice_streams,
    tls,
};
use crate::{
    guard::{Limit, SecurityEvent, Subject, Turned, ValidatedSource},
    metrics::{DropReason, FromCountry},
    table::{ConnId, Joined},
    wire::{
        AllocationId, Claims, CloseCode,
        control::{
            Allocated, Challenge, Channel, ClientMessage, Closing, Expiring, Feature, Hello, MAX_FRAME,
            PathLimit, PeerState, Pong, Refreshed, Refused, RelayMessage,
        },
        proof::{self, Binding},
    },
};

/// From the first packet to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From the end of the handshake until the token is accepted.
pub(super) const AUTH_TIMEOUT: Duration = Duration::from_secs(3);
/// Datagrams a caller may send before its token is accepted. None can go anywhere, and a packet holds hundreds
/// of empty ones, each of which costs this thread time.
pub(super) const MAX_EARLY_DATAGRAMS: u64 = 256;
/// How long a close waits for the client to acknowledge why.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client may leave the control stream unread before it counts as broken.
const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection without a token is looked at for how often it has moved.
const MOVES_INTERVAL: Duration = Duration::from_millis(100);
/// Control messages a client may send at once; then one each [`CONTROL_INTERVAL`]. A Refresh costs a signature
/// check. More are not refused, they wait.
const CONTROL_BURST: u32 = 32;
const CONTROL_INTERVAL: Duration = Duration::from_millis(100);

/// A client that names itself so makes its session panic, in tests.
#[cfg(test)]
pub(super) const PANICKING_AGENT: &str = "panic, please";

/// What sessions need to know of the relay they belong to.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// Where clients reach this relay, when that is not where their packets arrive.
    pub public_addr: Option<SocketAddr>,
    pub listen_port: u16,
    pub keepalive: Option<Duration>,
    /// Whether clients are offered a raw channel.
    pub raw_channel: bool,
}

/// Serves one connection attempt to its end.
pub(super) fn serve(hub: Arc<Hub>, shard: Arc<Shard>, caller: Caller) -> impl Future<Output = ()> + Send {
    // Boxed, as is all that a session seldom does, so that what it needs then is not held for as long as it lives.
    let letting_in = Box::pin(let_in(hub, shard, caller));
    async move {
        if let Some((mut guard, mut session)) = letting_in.await {
            guard.code = session.run().await;
        }
    }
}

/// Handshake, Hello, proof. `None` when it ended there; what there was to say has been said.
async fn let_in(hub: Arc<Hub>, shard: Arc<Shard>, caller: Caller) -> Option<(Guard, Session)> {
    let Caller { incoming, place: unauthenticated, counted, cover } = caller;
    let from = incoming.remote_address().ip();
    let connection = match incoming.accept_with(hub.accepting().with.clone()) {
        Ok(connecting) => timeout(HANDSHAKE_TIMEOUT, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    if let Some(cover) = cover {
        match &connection {
            Ok(Ok(_)) => cover.finished(),
            _ => cover.failed(hub.clock.mono()),
        }
    }
    let connection = match connection {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            // The words may be the client's.
            tracing::debug!(error = ?error.to_string(), "handshake failed");
            hub.metrics.handshakes_failed.inc();
            return None;
        }
        Err(_) => {
            tracing::debug!("handshake timed out");
            hub.metrics.handshakes_failed.inc();
            return None;
        }
    };
    let id = hub.next_connection();
    // Whoever finished the handshake read what was sent there. Where the connection has moved to since, is not asked:
    // that may be a claim.
    let caller = Subject::source(ValidatedSource::vouched(from)).on(id);
    let mut guard = Guard::new(hub.clone(), id, connection.clone(), shard.connections.clone());
    tracing::debug!(connection = id.0, address = %connection.remote_address(), "connected");
    if let Err(turned) = hub.guard.finished(from, counted, hub.clock.mono()) {
        hub.guard.report(turned, caller);
        let Rejection { code, message, .. } = turned.into();
        hub.metrics.refused(code);
        guard.code = Some(code);
        connection.close(number(code), message.as_bytes());
        return None;
    }

    let mut control = None;
    let admitted = {
        let admission = timeout(AUTH_TIMEOUT, admit(&hub, &shard, &connection, id, caller, &mut control));
        let mut admission = std::pin::pin!(admission);
        let mut moves = std::pin::pin!(too_many_moves(&connection));
        loop {
            tokio::select! {
                biased;
                admitted = &mut admission => break admitted,
                challenges = &mut moves => {
                    let code = CloseCode::RateLimited;
                    hub.metrics.refused(code);
                    guard.code = Some(code);
                    report_restless(&hub, challenges, Subject::NOBODY.on(id));
                    connection.close(number(code), RESTLESS.as_bytes());
                    return None;
                }
                // Bound what a caller without a token can make us hold: take its datagrams and let them go.
                Ok(_) = connection.read_datagram() => {
                    guard.early_datagrams += 1;
                    hub.metrics.dropped(DropReason::Unauthenticated, 1);
                    if guard.early_datagrams > MAX_EARLY_DATAGRAMS {
                        // Without the patience of a refusal, which it would use to send more.
                        let code = CloseCode::ProtocolError;
                        hub.metrics.refused(code);
                        guard.code = Some(code);
                        hub.security.emit(SecurityEvent::LimitHit { limit: Limit::EarlyDatagrams }, caller);
                        connection.close(number(code), b"datagrams before a token was accepted");
                        return None;
                    }
                }
            }
        }
    };
    let outcome = match admitted {
        Ok(outcome) => outcome,
        Err(_) => {
            let message = "no accepted token within 3 s of the handshake";
            Err(Some(Rejection::new(CloseCode::AuthTimeout, message).by(Limit::AuthTimeout)))
        }
    };
    let admitted = match outcome {
        Ok(admitted) => admitted,
        Err(Some(rejection)) => {
            hub.metrics.refused(rejection.code);
            tracing::debug!(connection = id.0, code = rejection.code.name(), "refused");
            report_limit(&hub, &rejection, caller);
            guard.code = Some(rejection.code);
            refuse(&connection, control.as_mut().map(|(send, _)| send), rejection).await;
            return None;
        }
        Err(None) => return None,
    };
    drop(unauthenticated);
    guard.joined = true;
    guard.of_country = hub.metrics.countries.arrived(from);
    let (send, reader) = control?;
    // Before what is relayed. An error would say that the stream is closed; the first write says it too.
    let _ = send.set_priority(1);
    tls::open_up(&connection);
    let early_datagrams = guard.early_datagrams;
    admitted.leg.datagrams.read.fetch_add(early_datagrams, std::sync::atomic::Ordering::Relaxed);
    let caller = caller.of(admitted.leg.handle);
    let session = Session { hub, shard, caller, admitted, send, reader, closed_with: None };
    Some((guard, session))
}

/// Waits until more addresses have been challenged than a client has that moves; how many.
async fn too_many_moves(connection: &quinn::Connection) -> u64 {
    loop {
        tokio::time::sleep(MOVES_INTERVAL).await;
        let challenges = connection.stats().frame_tx.path_challenge;
        if challenges > MAX_CHALLENGES {
            return challenges;
        }
    }
}

/// Leaves the table and counts the end, however the session ends.
struct Guard {
    hub: Arc<Hub>,
    id: ConnId,
    connection: quinn::Connection,
    /// Connections of the shard.
    of_shard: IntGauge,
    /// Connections of its country, once it is let in; `None` where nobody knows countries.
    of_country: Option<FromCountry>,
    /// The code that this side closed with.
    code: Option<CloseCode>,
    /// Whether it was let into an allocation.
    joined: bool,
    early_datagrams: u64,
}

impl Guard {
    fn new(hub: Arc<Hub>, id: ConnId, connection: quinn::Connection, of_shard: IntGauge) -> Self {
        hub.metrics.connections_opened.inc();
        hub.metrics.connections.inc();
        of_shard.inc();
        Self {
            hub,
            id,
            connection,
            of_shard,
            of_country: None,
            code: None,
            joined: false,
            early_datagrams: 0,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.code = Some(CloseCode::Internal);
        }
        let code = self.code.unwrap_or_else(|| match self.connection.close_reason() {
            Some(reason) => code_of(&reason),
            None => CloseCode::Internal,
        });
        // Does nothing where the connection is closed already.
        self.connection.close(number(code), b"");
        self.hub.leave(self.id);
        self.hub.metrics.connection_closed(code);
        self.of_shard.dec();
        drop(self.of_country.take());
        // What was never let in is an attacker's to repeat; it does not fill the log.
        if self.joined {
            tracing::info!(connection = self.id.0, code = code.name(), "connection ended");
        } else {
            tracing::debug!(connection = self.id.0, code = code.name(), "connection ended");
        }
    }
}

/// A refusal that a limit is the reason of is a security event.
fn report_limit(hub: &Hub, rejection: &Rejection, caller: Subject) {
    if let Some(limit) = rejection.limit {
        hub.security.emit(SecurityEvent::LimitHit { limit }, caller);
    }
}

fn number(code: CloseCode) -> VarInt {
    VarInt::from_u32(u32::from(code.number()))
}

/// How the end of a connection is counted when this side did not decide it.
fn code_of(reason: &ConnectionError) -> CloseCode {
    match reason {
        ConnectionError::ApplicationClosed(close) => {
            CloseCode::from_number(close.error_code.into_inner()).unwrap_or(CloseCode::Closed)
        }
        ConnectionError::TimedOut | ConnectionError::Reset => CloseCode::Idle,
        ConnectionError::LocallyClosed => CloseCode::Closed,
        _ => CloseCode::ProtocolError,
    }
}

/// A caller that has been let in.
struct Admitted {
    leg: Arc<Leg>,
    joined: Joined,
    allocation_id: AllocationId,
}

type Control = Option<(SendStream, FrameReader)>;

/// Reads Hello, asks for a proof where none came, and joins the allocation.
///
/// The control stream is left in `control` as soon as there is one, so that a refusal can be said on it.
///
/// # Errors
/// What to tell the caller, or `None` when the connection is gone.
async fn admit(
    hub: &Hub,
    shard: &Shard,
    connection: &quinn::Connection,
    id: ConnId,
    caller: Subject,
    control: &mut Control,
) -> Result<Admitted, Option<Rejection>> {
    let (send, recv) = connection.accept_bi().await.map_err(|_| None)?;
    let (send, reader) = control.insert((send, FrameReader::new(recv)));
    let ClientMessage::Hello(hello) = next_message(reader).await? else {
        return Err(Some(Rejection::new(CloseCode::ProtocolError, "the first message must be Hello")));
    };
    request(hub, connection, caller).map_err(|turned| {
        hub.guard.report(turned, caller);
        Rejection::from(turned)
    })?;
    let claims = hub
        .admission()
        .admit(&hub.relay_id, &hello.token, &hello.allocation_id, hub.clock.unix_secs(), &hub.verified)
        .map_err(|error| {
            hub.security.emit(SecurityEvent::BadToken { reason: error.reason() }, caller);
            Some(error.into())
        })?;
    if !proves(connection, &hello, &claims, send, reader).await? {
        let event = SecurityEvent::ProofFailed { role: hello.role };
        hub.security.emit(event, caller.of(claims.identity.handle()));
        return Err(Some(Rejection::new(
            CloseCode::ProofInvalid,
            "the proof was not made by the role's key for this connection",
        )));
    }
    let origin = Origin {
        shard: shard.number,
        wants_channel: shard.terms.raw_channel && hello.features.contains(&Feature::RawChannel),
    };
    let (leg, joined) = hub.join(connection, id, origin, hello.role, &claims)?;
    tracing::info!(
        allocation = %leg.handle,
        connection = id.0,
        role = %hello.role,
        agent = ?hello.agent,
        "connection joined"
    );
    #[cfg(test)]
    assert_ne!(hello.agent, PANICKING_AGENT, "as a test asked for");
    Ok(Admitted { leg, joined, allocation_id: claims.identity.allocation_id })
}

/// Asks for an allocation: from where the handshake was made, which is proven, and from where the connection is now.
fn request(hub: &Hub, connection: &quinn::Connection, caller: Subject) -> Result<(), Turned> {
    let (mono, now_at) = (hub.clock.mono(), connection.remote_address().ip());
    let from = caller.source.map_or(now_at, ValidatedSource::ip);
    hub.guard.request(from, mono)?;
    hub.guard.moved(from, now_at, mono)
}

/// Whether the caller holds its role's key.
async fn proves(
    connection: &quinn::Connection,
    hello: &Hello,
    claims: &Claims,
    send: &mut SendStream,
    reader: &mut FrameReader,
) -> Result<bool, Option<Rejection>> {
    let (binding, proof) = match &hello.proof {
        Some(proof) => (exporter_binding(connection)?, proof.clone()),
        None => {
            let mut nonce = [0; 32];
            getrandom::fill(&mut nonce)
                .map_err(|_| Rejection::new(CloseCode::Internal, "no randomness to be had"))?;
            let challenge = RelayMessage::Challenge(Challenge { nonce: Bytes::copy_from_slice(&nonce) });
            send.write_all(&challenge.to_frame()).await.map_err(|error| unheard(&error))?;
            let ClientMessage::Prove(prove) = next_message(reader).await? else {
                return Err(Some(Rejection::new(
                    CloseCode::ProtocolError,
                    "a Challenge is answered by Prove",
                )));
            };
            (Binding::Nonce { nonce, spki_sha256: shown_key(connection)? }, prove.proof)
        }
    };
    Ok(proof::verifies(claims.key_of(hello.role), hello.role, &claims.token_hash, &binding, &proof))
}

/// The next control message, while there must be one.
async fn next_message(reader: &mut FrameReader) -> Result<ClientMessage, Option<Rejection>> {
    match reader.next().await {
        Ok(Some(body)) => {
            ClientMessage::parse(body).map_err(|e| Some(Rejection::new(e.close_code(), e.to_string())))
        }
        Ok(None) => Err(Some(Rejection::new(CloseCode::ProtocolError, "the control stream ended"))),
        Err(error) => Err(rejection_of(&error)),
    }
}

/// What a caller is told that takes no control messages; `None` when it is gone.
fn unheard(error: &WriteError) -> Option<Rejection> {
    match error {
        WriteError::ConnectionLost(_) => None,
        _ => Some(Rejection::new(CloseCode::ProtocolError, "the control stream was stopped")),
    }
}

/// What a caller is told of a frame that could not be read; `None` when it is gone.
fn rejection_of(error: &ReadFrameError) -> Option<Rejection> {
    match error {
        ReadFrameError::ConnectionLost => None,
        ReadFrameError::Frame(frame) => Some(Rejection::new(frame.close_code(), frame.to_string())),
        ReadFrameError::Truncated | ReadFrameError::Reset => {
            Some(Rejection::new(CloseCode::ProtocolError, error.to_string()))
        }
    }
}

/// Says why on the control stream, if there is one, and closes with the same code.
async fn refuse(connection: &quinn::Connection, send: Option<&mut SendStream>, rejection: Rejection) {
    let retry_after_ms =
        rejection.retry_after.and_then(|after| u32::try_from(after.as_millis()).ok()).unwrap_or(0);
    let refused = RelayMessage::Refused(Refused {
        code: u32::from(rejection.code.number()),
        message: rejection.message.clone(),
        retry_after_ms,
        relays: Vec::new(),
    });
    goodbye(connection, send, &refused, rejection.code, &rejection.message).await;
}

/// Writes a last message, gives the client a moment to acknowledge it, and closes.
async fn goodbye(
    connection: &quinn::Connection,
    send: Option<&mut SendStream>,
    last: &RelayMessage,
    code: CloseCode,
    message: &str,
) {
    if let Some(send) = send {
        let acknowledged = async {
            send.write_all(&last.to_frame()).await.ok()?;
            send.finish().ok()?;
            send.stopped().await.ok()
        };
        // Whether it was acknowledged or not: the close code says the same.
        let _ = timeout(GOODBYE_TIMEOUT, acknowledged).await;
    }
    connection.close(number(code), message.as_bytes());
}

/// A session whose caller has been let in.
struct Session {
    hub: Arc<Hub>,
    shard: Arc<Shard>,
    /// As the handshake proved it.
    caller: Subject,
    admitted: Admitted,
    send: SendStream,
    reader: FrameReader,
    /// The code, once a write has closed the connection because the client takes no messages.
    closed_with: Option<CloseCode>,
}

impl Session {
    /// Serves until the end; the code, when this side decided it.
    async fn run(&mut self) -> Option<CloseCode> {
        let leg = self.admitted.leg.clone();
        let _watched = self.shard.watch(&self.hub, leg.clone());
        self.reader.set_max(MAX_FRAME);
        let mut told = Told {
            peer_present: self.admitted.joined.peer_present,
            // Allocated has no room for the other one.
            path_limit: PathLimits { raw_bytes: 0, ..leg.path_limits() },
        };
        let allocated = self.allocated(&told);
        if let Err(end) = Box::pin(self.say(&allocated)).await {
            return end;
        }
        let mut children = JoinSet::new();
        children.spawn(forward_datagrams(self.hub.clone(), leg.clone()));
        children.spawn(splice_streams(self.hub.clone(), leg.clone()));
        let mut pace = Pace::new(self.hub.clock.mono());
        let mut client_speaks = true;
        loop {
            let wait = pace.wait(self.hub.clock.mono());
            let next = async {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                self.reader.next().await
            };
            tokio::select! {
                biased;
                () = leg.outbox_filled() => {
                    let outbox = leg.take_outbox();
                    if let Some(Close { code, message }) = outbox.close {
                        children.abort_all();
                        self.hub.depart(leg.id);
                        leg.control_pending();
                        let closing = RelayMessage::Closing(Closing {
                            code: u32::from(code.number()),
                            message: message.to_string(),
                        });
                        Box::pin(goodbye(&leg.connection, Some(&mut self.send), &closing, code, &message)).await;
                        return Some(code);
                    }
                    if let Err(end) = Box::pin(self.tell(&mut told, outbox)).await {
                        return end;
                    }
                }
                Some(ended) = children.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    // They end when the connection does.
                    if leg.connection.close_reason().is_some() {
                        return None;
                    }
                }
                frame = next, if client_speaks => {
                    let outcome = match frame {
                        // A client may finish its side; it is then told things and asks for none.
                        Ok(None) => { client_speaks = false; Ok(()) }
                        Ok(Some(body)) => { pace.spend(self.hub.clock.mono()); Box::pin(self.answer(body)).await }
                        Err(error) => Err(rejection_of(&error)),
                    };
                    match outcome {
                        Ok(()) => {}
                        Err(None) => return self.closed_with,
                        Err(Some(rejection)) => {
                            children.abort_all();
                            self.hub.depart(leg.id);
                            leg.control_pending();
                            let code = rejection.code;
                            self.hub.metrics.refused(code);
                            report_limit(&self.hub, &rejection, self.caller());
                            Box::pin(refuse(&leg.connection, Some(&mut self.send), rejection)).await;
                            return Some(code);
                        }
                    }
                }
                _ = leg.connection.closed() => return None,
            }
        }
    }

    /// The answer to a Hello that was accepted.
    fn allocated(&self, told: &Told) -> RelayMessage {
        let Admitted { leg, joined, allocation_id } = &self.admitted;
        let terms = &self.shard.terms;
        let remote = leg.connection.remote_address();
        let (relay_addr, relay_port) = match terms.public_addr {
            Some(public) => (public.ip().to_canonical(), public.port()),
            // On a wildcard socket quinn knows which address the client's packets came to.
            None => {
                (leg.connection.local_ip().unwrap_or_else(|| remote.ip()).to_canonical(), terms.listen_port)
            }
        };
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        RelayMessage::Allocated(Allocated {
            allocation_id: Bytes::copy_from_slice(allocation_id.as_bytes()),
            relay_addr: relay_addr.to_string(),
            relay_port: u32::from(relay_port),
            expires_at: joined.grant.expires_at_unix,
            bandwidth_limit: joined.grant.limits.rate_bytes_per_sec,
            burst_bytes: joined.grant.burst_bytes,
            quota_bytes: joined.grant.limits.quota_bytes,
            bytes_used: joined.grant.bytes_used,
            observed_addr: SocketAddr::new(remote.ip().to_canonical(), remote.port()).to_string(),
            peer_present: told.peer_present,
            max_datagram_bytes: told.path_limit.datagram_bytes,
            keepalive_ms: terms.keepalive.map_or(0, milliseconds),
            idle_timeout_ms: milliseconds(self.hub.accepting().idle_timeout),
            features: terms.raw_channel.then_some(Feature::RawChannel.into()).into_iter().collect(),
            relays: Vec::new(),
        })
    }

    /// Answers one control message.
    ///
    /// # Errors
    /// What the connection is closed with, or `None` when it is gone.
    async fn answer(&mut self, body: Bytes) -> Result<(), Option<Rejection>> {
        let message = ClientMessage::parse(body)
            .map_err(|error| Some(Rejection::new(error.close_code(), error.to_string())))?;
        let leg = &self.admitted.leg;
        match message {
            ClientMessage::Ping(value) => {
                let pong = RelayMessage::Pong(Pong { value });
                self.say(&pong).await.map_err(|_| None)
            }
            ClientMessage::Refresh(refresh) => {
                let allocation_id = self.admitted.allocation_id;
                let claims = self.admit_again(&refresh.token, allocation_id.as_bytes())?;
                self.hub.refresh(leg.id, &claims)?;
                tracing::info!(allocation = %leg.handle, connection = leg.id.0, "token refreshed");
                Ok(())
            }
            ClientMessage::Release => {
                self.hub.release(leg.id);
                Ok(())
            }
            ClientMessage::Hello(_) | ClientMessage::Prove(_) => Err(Some(Rejection::new(
                CloseCode::ProtocolError,
                "this connection is already authenticated",
            ))),
        }
    }

    fn admit_again(&self, token: &[u8], allocation_id: &[u8]) -> Result<Claims, Option<Rejection>> {
        let hub = &self.hub;
        hub.admission()
            .admit(&hub.relay_id, token, allocation_id, hub.clock.unix_secs(), &hub.verified)
            .map_err(|error| {
                hub.security.emit(SecurityEvent::BadToken { reason: error.reason() }, self.caller());
                Some(error.into())
            })
    }

    /// Whom an event is about. The source is not named once the client has another address: where it is now may be
    /// a claim, and who is where it was, somebody else.
    fn caller(&self) -> Subject {
        let now = self.admitted.leg.connection.remote_address().ip().to_canonical();
        Subject { source: self.caller.source.filter(|source| source.ip() == now), ..self.caller }
    }

    /// Tells the client what it does not know yet.
    async fn tell(&mut self, told: &mut Told, outbox: Outbox) -> Result<(), Option<CloseCode>> {
        if let Some(grant) = outbox.refreshed {
            let refreshed = RelayMessage::Refreshed(Refreshed {
                expires_at: grant.expires_at_unix,
                bandwidth_limit: grant.limits.rate_bytes_per_sec,
                burst_bytes: grant.burst_bytes,
                quota_bytes: grant.limits.quota_bytes,
                bytes_used: grant.bytes_used,
            });
            self.say(&refreshed).await?;
        }
        if let Some(usage) = outbox.usage {
            self.say(&RelayMessage::Usage(usage)).await?;
        }
        if let Some(throttled) = outbox.throttled {
            self.say(&RelayMessage::Throttled(throttled)).await?;
        }
        if let Some(expires_at) = outbox.expiring {
            self.say(&RelayMessage::Expiring(Expiring { expires_at })).await?;
        }
        if let Some(present) = outbox.peer_present
            && present != told.peer_present
        {
            told.peer_present = present;
            self.say(&RelayMessage::PeerState(PeerState { present })).await?;
        }
        if let Some(tag) = outbox.channel {
            let tag = Bytes::copy_from_slice(tag.as_bytes());
            self.say(&RelayMessage::Channel(Channel { tag })).await?;
        }
        if let Some(path_limit) = outbox.path_limit
            && path_limit != told.path_limit
        {
            told.path_limit = path_limit;
            let PathLimits { datagram_bytes, raw_bytes } = path_limit;
            let limit = PathLimit { max_datagram_bytes: datagram_bytes, max_raw_bytes: raw_bytes };
            self.say(&RelayMessage::PathLimit(limit)).await?;
        }
        Ok(())
    }

    /// Writes one message.
    ///
    /// # Errors
    /// The code, when the connection was closed because the client takes no messages, or for another reason
    /// before this one was out; `None` when the connection is gone.
    async fn say(&mut self, message: &RelayMessage) -> Result<(), Option<CloseCode>> {
        self.admitted.leg.control_pending();
        let frame = message.to_frame();
        let rejection = tokio::select! {
            biased;
            written = timeout(CONTROL_WRITE_TIMEOUT, self.send.write_all(&frame)) => match written {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => unheard(&error).ok_or(None)?,
                Err(_) => Rejection::new(CloseCode::ProtocolError, "the control stream is not being read"),
            },
            // Decided meanwhile, and nothing more can be said: the code alone must suffice.
            Close { code, message } = self.admitted.leg.told_to_close() => Rejection::new(code, &*message),
        };
        self.admitted.leg.connection.close(number(rejection.code), rejection.message.as_bytes());
        self.closed_with = Some(rejection.code);
        Err(self.closed_with)
    }
}

/// What the client has been told last.
struct Told {
    peer_present: bool,
    path_limit: PathLimits,
}

/// Paces a client's control messages: [`CONTROL_BURST`] at once, then one each [`CONTROL_INTERVAL`].
struct Pace {
    /// When all messages so far are paid for.
    paid_at: Duration,
}

impl Pace {
    fn new(mono: Duration) -> Self {
        Self { paid_at: mono }
    }

    fn spend(&mut self, mono: Duration) {
        self.paid_at = self.paid_at.max(mono) + CONTROL_INTERVAL;
    }

    fn wait(&self, mono: Duration) -> Duration {
        (self.paid_at + CONTROL_INTERVAL).saturating_sub(mono + CONTROL_INTERVAL * CONTROL_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each connection holds these for as long as it lives, and most have nothing to do.
    #[test]
    fn what_rests_is_small() {
        fn size<A, F>(_: impl Fn(A) -> F) -> usize {
            size_of::<F>()
        }
        let session = size(|(hub, shard, caller)| serve(hub, shard, caller));
        let splices = size(|(hub, leg)| splice_streams(hub, leg));
        let datagrams = size(|(hub, leg)| forward_datagrams(hub, leg));
        assert!(session <= 1800 && splices <= 900 && datagrams <= 200, "{session} {splices} {datagrams}");
        assert!(size_of::<Leg>() <= 832, "{}", size_of::<Leg>());
    }

    #[test]
    fn control_messages_pass_in_a_burst_and_then_at_their_interval() {
        let mut mono = Duration::from_secs(7);
        let mut pace = Pace::new(mono);
        for _ in 0..CONTROL_BURST {
            assert_eq!(pace.wait(mono), Duration::ZERO);
            pace.spend(mono);
        }
        for _ in 0..3 {
            assert_eq!(pace.wait(mono), CONTROL_INTERVAL);
            mono += CONTROL_INTERVAL;
            assert_eq!(pace.wait(mono), Duration::ZERO);
            pace.spend(mono);
        }
        mono += CONTROL_INTERVAL * CONTROL_BURST * 9;
        for _ in 0..CONTROL_BURST {
            assert_eq!(pace.wait(mono), Duration::ZERO);
            pace.spend(mono);
        }
        assert_eq!(pace.wait(mono), CONTROL_INTERVAL, "an idle time saves up one burst, not more");
    }
}
