//! A joined allocation, as the application holds it.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use quinn::{RecvStream, SendDatagramError, SendStream, WriteError};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    ConnectError, ConnectTimes, Event, Events, Grant, Options, Refusal, Stats, Train,
    channel::Raw,
    connect::any_address_like,
    driver::Command,
    events,
    inbox::Inbox,
    link::{Link, STREAM_APPLICATION},
    queue::Queue,
    relay::{Ticket, Token},
    stats::Counters,
};
use crate::wire::{AnyToken, CloseCode, PublicKey, Role};

/// The largest payload that [`Session::send_datagram`] takes, in bytes. What does not fit one packet goes by a
/// stream of its own.
pub const MAX_DATAGRAM_BYTES: usize = 64 * 1024;

/// Commands that wait for the driver; callers wait for room.
pub(super) const COMMANDS: usize = 8;

/// Why a session is over.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// This side closed it, or dropped its last handle.
    #[error("closed by this side")]
    Closed,
    /// The relay ended it, or refused to take it back.
    #[error("the relay ended the session: {0}")]
    Relay(Refusal),
    /// It could not go on for another reason.
    #[error("the session failed")]
    Failed(#[source] Arc<ConnectError>),
}

impl End {
    /// The code: the relay's, or CLOSED when this side closed. `None` when the session failed without one.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed => Some(CloseCode::Closed),
            Self::Relay(refusal) => Some(refusal.code),
            Self::Failed(error) => error.code(),
        }
    }
}

impl From<ConnectError> for End {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(refusal) => Self::Relay(refusal),
            other => Self::Failed(Arc::new(other)),
        }
    }
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no connection at the moment; one is being made. Later datagrams may be luckier.
    #[error("there is no connection to the relay at the moment")]
    NotConnected,
    /// Larger than [`MAX_DATAGRAM_BYTES`]: never.
    #[error("a datagram of {got_bytes} bytes, at most {MAX_DATAGRAM_BYTES} can be sent")]
    TooLarge {
        /// Its size.
        got_bytes: usize,
    },
    /// Too much is waiting to be sent: not until some of it is gone.
    #[error("too much is waiting to be sent")]
    BufferFull,
    /// The session is over.
    #[error("the session is over: {0}")]
    Ended(End),
}

/// Why a token was not taken up.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RefreshError {
    /// The token is for another allocation, pair or relay.
    #[error("the token is for another allocation")]
    OtherAllocation,
    /// The token does not expire later than the one in use.
    #[error("the token does not expire later than the one in use")]
    NotLater,
    /// The token cannot have been signed by this device.
    #[error("the token was not signed with this device's key")]
    NotTheDevice,
    /// The relay refused it. The session goes on with the token it had.
    #[error("the relay refused the token: {0}")]
    Refused(Refusal),
    /// The session is over.
    #[error("the session is over: {0}")]
    Ended(End),
}

/// One side of an allocation: datagrams and streams to whoever holds the other side.
///
/// Cheap to clone; all clones are the same session. It keeps itself connected: when its connection is lost, a
/// new one takes its place with the same token, and the session object goes on. Datagrams follow the session;
/// streams die with the connection that they were opened on. Dropping the last handle closes it; streams that
/// are still held do not keep it open.
///
/// The relay reads and alters nothing of what crosses by contract, and could by nature: what is sent
/// here should be encrypted end to end, and what is received is the word of the relay or of the peer until
/// the application has checked it.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared().state.borrow();
        f.debug_struct("Session")
            .field("connected", &state.link.is_some())
            .field("peer_present", &state.peer_present)
            .field("end", &state.end)
            .finish_non_exhaustive()
    }
}

/// What all clones share: closes the session when the last of them goes.
struct Handle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    driver: JoinHandle<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.finish(End::Closed);
        self.driver.abort();
    }
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, commands: mpsc::Sender<Command>, driver: JoinHandle<()>) -> Self {
        Self { handle: Arc::new(Handle { shared, commands, driver }) }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// Sends a datagram to the other side, or says at once why not. Never waits.
    ///
    /// Delivery is not promised: as with UDP it may be lost or overtaken by later ones. While the raw channel is open,
    /// what fits it ([`Stats::raw_max_bytes`]) goes that way at once, and nothing paces it: like a UDP socket, it leaves
    /// to the application how much the path can take. Otherwise it is one QUIC datagram up to
    /// [`max_datagram_bytes`](Self::max_datagram_bytes); up to [`MAX_DATAGRAM_BYTES`] it goes by a stream of its own,
    /// at most 32 of which wait to be sent. While the other side is not there, the relay drops it.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn send_datagram(&self, data: Bytes) -> Result<(), SendError> {
        let shared = self.shared();
        let current = shared.current.load();
        let Some(link) = current.as_deref() else {
            return Err(shared.not_connected());
        };
        match link.channel.send_one(&data, &link.connection) {
            Raw::Sent => {
                shared.sent(1, data.len());
                Ok(())
            }
            Raw::Full => {
                shared.counters.send_buffer_full.add(1);
                Err(SendError::BufferFull)
            }
            Raw::Closed => self.send_by_quic(link, data),
        }
    }

    /// Sends datagrams of `segment_bytes` each, laid end to end in `data`; the last may be shorter. Says how many of
    /// them, from the first on, were accepted: fewer than all when there is no more room. Never waits.
    ///
    /// Like as many calls of [`send_datagram`](Self::send_datagram), but while the raw channel is open the kernel takes up to 64 of them
    /// at once, for little more than the price of one. It is what a QUIC stack's segmented transmit asks for. With a
    /// `segment_bytes` of 0, or beyond the length of `data`, all of it is one datagram; no data is none.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn send_train(&self, data: &[u8], segment_bytes: usize) -> Result<usize, SendError> {
        let shared = self.shared();
        let segment_bytes = if segment_bytes == 0 { data.len() } else { segment_bytes.min(data.len()) };
        if segment_bytes > MAX_DATAGRAM_BYTES {
            return Err(SendError::TooLarge { got_bytes: segment_bytes });
        }
        let current = shared.current.load();
        let Some(link) = current.as_deref() else {
            return Err(shared.not_connected());
        };
        if data.is_empty() {
            return Ok(0);
        }
        let all = data.len().div_ceil(segment_bytes);
        let (mut accepted, outcome) = link.channel.send(data, segment_bytes, &link.connection);
        let sent_bytes = (accepted * segment_bytes).min(data.len());
        shared.sent(accepted, sent_bytes);
        let refusal = match outcome {
            Raw::Sent => None,
            Raw::Full => {
                shared.counters.send_buffer_full.add(1);
                Some(SendError::BufferFull)
            }
            Raw::Closed => {
                let mut rest = Bytes::copy_from_slice(data.get(sent_bytes..).unwrap_or_default());
                loop {
                    let datagram = rest.split_to(rest.len().min(segment_bytes));
                    if datagram.is_empty() {
                        break None;
                    }
                    match self.send_by_quic(link, datagram) {
                        Ok(()) => accepted += 1,
                        Err(error) => break Some(error),
                    }
                }
            }
        };
        match refusal {
            Some(error) => {
                if matches!(error, SendError::BufferFull) {
                    // The first that was refused has been counted.
                    shared.counters.send_buffer_full.add((all - accepted).saturating_sub(1) as u64);
                }
                if accepted > 0 { Ok(accepted) } else { Err(error) }
            }
            None => Ok(accepted),
        }
    }

    fn send_by_quic(&self, link: &Link, data: Bytes) -> Result<(), SendError> {
        let shared = self.shared();
        let len = data.len();
        if len > link.limit.load(Relaxed) {
            return self.send_oversize(link, data);
        }
        if link.held.load(Relaxed) {
            shared.counters.send_buffer_full.add(1);
            return Err(SendError::BufferFull);
        }
        // The waiting kind of sending, polled once: the other kind makes room by dropping what waits longest.
        let retry = data.clone();
        let sending = pin!(link.connection.send_datagram_wait(data));
        match Future::poll(sending, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                shared.sent(1, len);
                Ok(())
            }
            Poll::Pending => {
                shared.counters.send_buffer_full.add(1);
                Err(SendError::BufferFull)
            }
            // The path has shrunk below what the relay said last.
            Poll::Ready(Err(SendDatagramError::TooLarge)) => self.send_oversize(link, retry),
            Poll::Ready(Err(_)) => Err(shared.not_connected()),
        }
    }

    /// As [`send_datagram`](Self::send_datagram), but waits for a connection and for room instead of failing.
    ///
    /// For a sender that would rather be slowed down than lose: it then keeps the send buffer full, which
    /// costs latency. Cancel safe: when dropped before it is done, nothing was sent.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] and [`SendError::Ended`] only.
    pub async fn send_datagram_wait(&self, data: Bytes) -> Result<(), SendError> {
        let shared = self.shared();
        let len = data.len();
        if len > MAX_DATAGRAM_BYTES {
            return Err(SendError::TooLarge { got_bytes: len });
        }
        loop {
            let link = shared.link().await.map_err(SendError::Ended)?;
            match link.channel.send_one(&data, &link.connection) {
                Raw::Sent => {
                    shared.sent(1, len);
                    return Ok(());
                }
                Raw::Full if link.channel.writable().await => continue,
                Raw::Full | Raw::Closed => {}
            }
            if len <= link.limit.load(Relaxed) {
                link.released().await;
                match link.connection.send_datagram_wait(data.clone()).await {
                    Ok(()) => {
                        shared.sent(1, len);
                        return Ok(());
                    }
                    // The path has shrunk below what the relay said last.
                    Err(SendDatagramError::TooLarge) => {}
                    Err(_) => {
                        shared.replaced(&link).await;
                        continue;
                    }
                }
            }
            if link.oversize.send(data.clone()).await.is_ok() {
                shared.sent(1, len);
                shared.counters.oversize_sent.add(1);
                return Ok(());
            }
            shared.replaced(&link).await;
        }
    }

    fn send_oversize(&self, link: &Link, data: Bytes) -> Result<(), SendError> {
        let shared = self.shared();
        let len = data.len();
        if len > MAX_DATAGRAM_BYTES {
            return Err(SendError::TooLarge { got_bytes: len });
        }
        match link.oversize.try_send(data) {
            Ok(()) => {
                shared.sent(1, len);
                shared.counters.oversize_sent.add(1);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                shared.counters.send_buffer_full.add(1);
                Err(SendError::BufferFull)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(shared.not_connected()),
        }
    }

    /// The next datagram from the other side. Cancel safe.
    ///
    /// At most [`Options::datagram_receive_buffer_bytes`] wait here; then the oldest is dropped and [counted](Stats::receive_dropped).
    /// Size (at most [`MAX_DATAGRAM_BYTES`]) and content are the peer's or the relay's choice. What arrived together shares
    /// its memory, at most 64 KiB: copy what is to be kept for long.
    ///
    /// # Errors
    /// [`End`] once the session is over and what had arrived before has been received.
    pub async fn recv_datagram(&self) -> Result<Bytes, End> {
        self.shared().inbox.pop().await.ok_or_else(|| self.shared().end())
    }

    /// The next datagrams from the other side, as many as arrived together. Cancel safe. As
    /// [`recv_datagram`](Self::recv_datagram), in order with it, and cheaper where there are many.
    ///
    /// # Errors
    /// [`End`] once the session is over and what had arrived before has been received.
    pub async fn recv_train(&self) -> Result<Train, End> {
        self.shared().inbox.pop_train().await.ok_or_else(|| self.shared().end())
    }

    /// A datagram that has arrived already, if there is one. Never waits.
    pub fn try_recv_datagram(&self) -> Option<Bytes> {
        self.shared().inbox.try_pop()
    }

    /// Datagrams that have arrived already, if there are any. Never waits.
    pub fn try_recv_train(&self) -> Option<Train> {
        self.shared().inbox.try_pop_train()
    }

    /// Opens a stream in both directions. The other side sees it in [`accept_bi`](Self::accept_bi), in the order of opening.
    ///
    /// Waits for a connection, and while the other side has as many open as it allows. The stream ends with the
    /// connection it was opened on. Codes of resets and stops cross as they are; the relay's own are told
    /// apart by [`CloseCode::from_reset_code`]. Cancel safe: dropped early, the other side sees at most a reset stream.
    ///
    /// # Errors
    /// [`End`] when the session is over.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), End> {
        loop {
            let link = self.shared().link().await?;
            if let Ok((mut send, recv)) = link.connection.open_bi().await
                && begin(&mut send).await
            {
                return Ok((send, recv));
            }
            self.shared().replaced(&link).await;
        }
    }

    /// Opens a stream towards the other side. As [`open_bi`](Self::open_bi).
    ///
    /// # Errors
    /// [`End`] when the session is over.
    pub async fn open_uni(&self) -> Result<SendStream, End> {
        loop {
            let link = self.shared().link().await?;
            if let Ok(mut send) = link.connection.open_uni().await
                && begin(&mut send).await
            {
                return Ok(send);
            }
            self.shared().replaced(&link).await;
        }
    }

    /// The next stream in both directions that the other side opened, in the order of opening. Cancel safe.
    ///
    /// Streams that are not accepted hold their place: the other side may have [`Options::max_streams`] of them.
    ///
    /// # Errors
    /// [`End`] when the session is over.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), End> {
        self.shared().accepted_bi.pop().await.ok_or_else(|| self.shared().end())
    }

    /// The next stream from the other side, in the order of opening. Cancel safe. As [`accept_bi`](Self::accept_bi).
    ///
    /// # Errors
    /// [`End`] when the session is over.
    pub async fn accept_uni(&self) -> Result<RecvStream, End> {
        self.shared().accepted_uni.pop().await.ok_or_else(|| self.shared().end())
    }

    /// What happens from now on: the other side coming and going, limits, reconnects, the end.
    pub fn events(&self) -> Events {
        self.shared().subscribe()
    }

    /// Brings a newer token for the same allocation; expiry and limits become that token's.
    ///
    /// When it returns, the relay has accepted the token, and later connections use it. While there is no
    /// connection it waits for one. A relay that refuses a token closes the connection: the session then
    /// reconnects with the token it had. Dropping the future does not take the token back.
    ///
    /// # Errors
    /// [`RefreshError`]. The first three are found here, without asking the relay.
    pub async fn refresh(&self, token: impl Into<AnyToken>) -> Result<Grant, RefreshError> {
        let any = token.into();
        let shared = self.shared();
        let ticket = shared.ticket.load_full();
        if let (Role::Device, AnyToken::Device(signed)) = (ticket.role, &any)
            && signed.verify(&PublicKey::from(&ticket.key)).is_err()
        {
            return Err(RefreshError::NotTheDevice);
        }
        // Claims that cannot be read are those of no allocation.
        let token = Token::try_from(&any).map_err(|_| RefreshError::OtherAllocation)?;
        if !token.is_for_the_same_as(&ticket.token) {
            return Err(RefreshError::OtherAllocation);
        }
        // The token in use may be shown again.
        if token.expires_at_unix <= ticket.token.expires_at_unix && token != ticket.token {
            return Err(RefreshError::NotLater);
        }
        let (answer, answered) = oneshot::channel();
        let ended = |_| RefreshError::Ended(shared.end());
        self.handle.commands.send(Command::Refresh { token, answer }).await.map_err(|_| ended(()))?;
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(ended(())),
        }
    }

    /// Ends the allocation for both sides, for good: its token cannot be used again.
    ///
    /// While there is no connection it waits for one. Dropping the future does not take it back.
    ///
    /// # Errors
    /// [`End`] when the session ended otherwise.
    pub async fn release(&self) -> Result<(), End> {
        // When the driver is gone, the session is over, and that is what is looked at.
        let _ = self.handle.commands.send(Command::Release).await;
        match self.closed().await {
            end if end.code() == Some(CloseCode::Released) => Ok(()),
            end => Err(end),
        }
    }

    /// Closes this side. The allocation lives on for as long as the relay waits for this side to come back.
    ///
    /// At once: data of streams that the relay has not yet acknowledged is lost (wait for
    /// [`SendStream::stopped`] first). Wait for [`closed`](Self::closed) before the process exits, so that the relay hears of it.
    pub fn close(&self) {
        self.shared().finish(End::Closed);
    }

    /// Waits until the session is over and the relay has been told. Cancel safe.
    pub async fn closed(&self) -> End {
        let mut state = self.shared().state.subscribe();
        // The sender lives in `shared`, so this fails never.
        let _ = state.wait_for(|state| state.end.is_some() && state.drained).await;
        self.shared().end()
    }

    /// Whether the session is over, and why.
    pub fn end(&self) -> Option<End> {
        self.shared().state.borrow().end.clone()
    }

    /// Whether there is a connection at the moment.
    pub fn is_connected(&self) -> bool {
        self.shared().current.load().is_some()
    }

    /// Counters and the state of the present path.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// What the relay granted, as of the last answer.
    pub fn grant(&self) -> Grant {
        Grant::clone(&self.shared().grant.load())
    }

    /// Whether the other side is there, as far as the relay has said.
    pub fn peer_present(&self) -> bool {
        self.shared().state.borrow().peer_present
    }

    /// Waits until the other side is there. Cancel safe.
    ///
    /// # Errors
    /// [`End`] when the session is over.
    pub async fn peer_arrived(&self) -> Result<(), End> {
        let mut state = self.shared().state.subscribe();
        let _ = state.wait_for(|state| state.peer_present || state.end.is_some()).await;
        match self.end() {
            Some(end) => Err(end),
            None => Ok(()),
        }
    }

    /// The largest payload, in bytes, that now goes as one datagram all the way, raw or not; `None` between connections.
    /// What goes raw alone may be larger: [`Stats::raw_max_bytes`].
    ///
    /// It changes with both sides' paths; [`Event::PathLimit`] tells when the relay's word does.
    pub fn max_datagram_bytes(&self) -> Option<usize> {
        let current = self.shared().current.load();
        let link = current.as_deref()?;
        Some(link.limit.load(Relaxed).min(link.connection.max_datagram_size()?))
    }

    /// This side's address as the relay saw it when the connection was made.
    pub fn observed_addr(&self) -> Option<SocketAddr> {
        self.shared().grant.load().observed_addr
    }

    /// The connection in charge.
    #[cfg(test)]
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.shared().current.load_full()
    }

    /// Moves the present connection to a new local UDP socket, after a change of network. The session, its
    /// streams included, goes on from there; without a connection nothing happens.
    ///
    /// # Errors
    /// When no socket is to be had; the old one then stays in use.
    pub fn rebind(&self) -> io::Result<()> {
        let current = self.shared().current.load();
        let Some(link) = current.as_deref() else { return Ok(()) };
        let local = any_address_like(link.connection.remote_address());
        link.local.rebind(local)
    }
}

/// Writes the byte that says whose stream it is; `false` when the connection is lost. A stream that the other
/// side has stopped already is for the application to find out about.
async fn begin(send: &mut SendStream) -> bool {
    !matches!(send.write_all(&[STREAM_APPLICATION]).await, Err(WriteError::ConnectionLost(_)))
}

/// What the session's handles, its driver and its connections have in common.
pub(super) struct Shared {
    /// The connection that carries what is sent. Read on every datagram.
    pub(super) current: ArcSwapOption<Link>,
    /// The same, with what else can be waited for.
    pub(super) state: watch::Sender<State>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) accepted_bi: Queue<(SendStream, RecvStream)>,
    pub(super) accepted_uni: Queue<RecvStream>,
    pub(super) counters: Arc<Counters>,
    pub(super) grant: ArcSwap<Grant>,
    pub(super) ticket: ArcSwap<Ticket>,
    pub(super) times: ArcSwap<ConnectTimes>,
    /// All connections that are open, so that the end can close them at once.
    pub(super) links: Mutex<Vec<Arc<Link>>>,
    /// What was last told of the raw channel.
    raw_told: Mutex<bool>,
    /// Gone once the session is over.
    events: Mutex<Option<broadcast::Sender<Event>>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) link: Option<Arc<Link>>,
    pub(super) peer_present: bool,
    pub(super) end: Option<End>,
    /// After the end: the relay has been told, as far as it can be.
    pub(super) drained: bool,
}

impl Shared {
    pub(super) fn new(ticket: Ticket, grant: Grant, options: &Options, counters: Arc<Counters>) -> Self {
        // Two connections' worth: more streams than that cannot be waiting, unless those of dead ones pile up.
        let max_accepted =
            usize::try_from(options.max_streams).unwrap_or(usize::MAX).saturating_mul(2).max(2);
        Self {
            current: ArcSwapOption::empty(),
            state: watch::Sender::new(State::default()),
            inbox: Arc::new(Inbox::new(options.datagram_receive_buffer_bytes, counters.clone())),
            accepted_bi: Queue::new(max_accepted),
            accepted_uni: Queue::new(max_accepted),
            counters,
            grant: ArcSwap::from_pointee(grant),
            ticket: ArcSwap::from_pointee(ticket),
            times: ArcSwap::default(),
            links: Mutex::default(),
            raw_told: Mutex::new(false),
            events: Mutex::new(Some(broadcast::Sender::new(events::CAPACITY))),
        }
    }

    /// Tells whoever listens.
    pub(super) fn emit(&self, event: Event) {
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            // It fails when nobody listens.
            let _ = events.send(event);
        }
    }

    /// Tells, if it is news, whether datagrams go raw now.
    pub(super) fn tell_raw_channel(&self) {
        let mut told = self.raw_told.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.current.load().as_ref().is_some_and(|link| link.channel.is_open());
        if std::mem::replace(&mut *told, open) != open {
            tracing::debug!(open, "raw channel");
            self.emit(Event::RawChannel { open });
        }
    }

    fn subscribe(&self) -> Events {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        Events::new(match &mut *events {
            Some(events) => events.subscribe(),
            None => {
                let (sender, receiver) = broadcast::channel(1);
                let _ = sender.send(Event::Ended(self.end()));
                receiver
            }
        })
    }

    /// Puts a connection in charge, or none.
    pub(super) fn set_link(&self, link: Option<Arc<Link>>) {
        self.state.send_if_modified(|state| {
            if state.end.is_some() {
                return false;
            }
            self.current.store(link.clone());
            state.link = link;
            true
        });
    }

    /// Notes whether the other side is there; `true` when that is news.
    pub(super) fn set_peer(&self, present: bool) -> bool {
        self.state.send_if_modified(|state| {
            let news = state.end.is_none() && state.peer_present != present;
            if news {
                state.peer_present = present;
            }
            news
        })
    }

    /// Ends the session, unless it has ended before.
    pub(super) fn finish(&self, end: End) {
        let code = match &end {
            End::Failed(error) if matches!(**error, ConnectError::Protocol(_)) => CloseCode::ProtocolError,
            _ => CloseCode::Closed,
        };
        let first = self.state.send_if_modified(|state| {
            if state.end.is_some() {
                return false;
            }
            state.end = Some(end.clone());
            state.link = None;
            state.peer_present = false;
            self.current.store(None);
            true
        });
        if !first {
            return;
        }
        for link in self.links.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            link.close(code);
        }
        self.inbox.close();
        self.accepted_bi.close();
        self.accepted_uni.close();
        tracing::info!(reason = %end, "session over");
        if let Some(events) = self.events.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = events.send(Event::Ended(end));
        }
    }

    /// Why the session is over. Asked only when it is.
    fn end(&self) -> End {
        self.state.borrow().end.clone().unwrap_or(End::Closed)
    }

    /// Waits for a connection.
    async fn link(&self) -> Result<Arc<Link>, End> {
        let mut state = self.state.subscribe();
        let Ok(state) = state.wait_for(|state| state.link.is_some() || state.end.is_some()).await else {
            return Err(End::Closed);
        };
        match (&state.link, &state.end) {
            (Some(link), None) => Ok(link.clone()),
            (_, end) => Err(end.clone().unwrap_or(End::Closed)),
        }
    }

    /// Waits until another connection, or none, is in charge in place of one that does not work any more.
    async fn replaced(&self, link: &Link) {
        let same = |state: &State| state.link.as_ref().is_some_and(|now| now.id == link.id);
        let _ = self.state.subscribe().wait_for(|state| !same(state)).await;
    }

    /// Why there is no connection.
    fn not_connected(&self) -> SendError {
        match &self.state.borrow().end {
            Some(end) => SendError::Ended(end.clone()),
            None => SendError::NotConnected,
        }
    }

    fn sent(&self, datagrams: usize, bytes: usize) {
        self.counters.datagrams_sent.add(datagrams as u64);
        self.counters.datagram_bytes_sent.add(bytes as u64);
    }

    fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot();
        stats.connect = **self.times.load();
        if let Some(link) = &*self.current.load() {
            let path = link.connection.stats().path;
            stats.rtt = Some(path.rtt);
            stats.packets_lost = path.lost_packets;
            stats.path_mtu_bytes = Some(path.current_mtu);
            stats.raw_open = link.channel.is_open();
            stats.raw_max_bytes = link.channel.max_bytes();
        }
        stats
    }
}
