//! The task behind a session: makes connections, puts one in charge, replaces it, and ends it all.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ConnectError, ConnectTimes, End, Event, Grant, Options, RefreshError, Relay, Session, Ticket,
    backoff::{self, Backoff},
    connect::{ATTEMPT_TIMEOUT, Joined, MAX_RELAYS, Sockets, Target, attempt},
    link::{self, Link, LinkEnd, Report},
    relay::Token,
    session::{COMMANDS, Shared},
    stats::Counters,
    trust::Trust,
};
use crate::{
    clock::Clock,
    quic::congestion,
    wire::{
        CloseCode, TokenHash,
        control::{ClientMessage, Migrate, Refresh, Refreshed, RelayInfo},
    },
};

/// How many relays in a row may say that the allocation is elsewhere, or ask to move.
const MAX_MOVES: u32 = 3;
/// A connection that held for this long was a good one: what failed before does not count any more.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long the old connection is still read after a move: what the other side sent there is on its way.
const LINGER: Duration = Duration::from_millis(500);
/// How long a move waits for the other side at most, whatever the relay allows.
const MAX_MOVE: Duration = Duration::from_secs(600);
/// How long the end waits for the relay to have heard of it.
const DRAIN: Duration = Duration::from_secs(1);
/// Refreshes that wait for their answer; further callers wait.
const MAX_REFRESHES: usize = 8;
/// Reports that wait for the driver; a relay that floods them is read more slowly.
const REPORTS: usize = 32;

/// What a session's handles ask of its driver.
pub(super) enum Command {
    Refresh { token: Token, answer: oneshot::Sender<Result<Grant, RefreshError>> },
    Release,
}

/// Makes a session: the first connection here and now, the driver for all that follows.
pub(super) async fn connect(relay: &Relay, ticket: Ticket) -> Result<Session, ConnectError> {
    let descriptor = relay.descriptor();
    let (wanted, is) = (ticket.relay_id(), descriptor.relay_id);
    if wanted != is {
        return Err(ConnectError::WrongRelay { token: wanted, relay: is });
    }
    let options = relay.options().clone();
    let unpinned = relay.unpinned_trust();
    let counters = Arc::new(Counters::default());
    let dialer = Arc::new(Dialer {
        home: Target::new(descriptor, &unpinned),
        unpinned,
        sockets: Sockets::new(counters.clone()),
        options: options.clone(),
    });
    // Longer than there is time: no deadline.
    let deadline = Instant::now().checked_add(options.connect_timeout);
    let mut backoff = Backoff::new(options.backoff_initial, options.backoff_max);
    let joined = dialer.dial(&ticket, std::slice::from_ref(&dialer.home), &mut backoff, deadline).await?;
    let shared = Arc::new(Shared::new(ticket, joined.grant.clone(), &options, counters));
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (reports, report_queue) = mpsc::channel(REPORTS);
    let mut driver = Driver {
        shared: shared.clone(),
        dialer,
        commands: command_queue,
        reports,
        report_queue,
        links: JoinSet::new(),
        lingering: JoinSet::new(),
        next_link_id: 0,
        current: None,
        stalled: false,
        successor: None,
        dialing: None,
        elsewhere: Vec::new(),
        moves: 0,
        backoff,
        refreshes: VecDeque::new(),
        refreshed_on: None,
        refused_token: None,
        releasing: false,
    };
    let first = driver.add(joined);
    driver.put_in_charge(first);
    let driver = tokio::spawn(driver.run());
    Ok(Session::new(shared, commands, driver))
}

/// Makes connections that have joined.
struct Dialer {
    home: Target,
    unpinned: Trust,
    sockets: Sockets,
    options: Options,
}

impl Dialer {
    /// Tries the targets in turn, pausing between attempts, until one is joined or there is no point in going on.
    ///
    /// There is none when an error is final, when the deadline comes before the next attempt, or when nobody can
    /// be reached and the token has expired by this machine's clock.
    async fn dial(
        &self,
        ticket: &Ticket,
        targets: &[Target],
        backoff: &mut Backoff,
        deadline: Option<Instant>,
    ) -> Result<Joined, ConnectError> {
        let mut last = None;
        let mut moves = 0;
        let mut named = VecDeque::new();
        let mut in_turn = targets.iter().cycle();
        loop {
            let target = match named.pop_front() {
                Some(target) => target,
                None => in_turn.next().unwrap_or(&self.home).clone(),
            };
            let now = Instant::now();
            let attempt_ends = now + ATTEMPT_TIMEOUT.min(self.options.connect_timeout);
            let cut_short = deadline.is_some_and(|deadline| deadline <= attempt_ends);
            let ends = deadline.map_or(attempt_ends, |deadline| deadline.min(attempt_ends));
            let error = match self.attempt(&target, ticket, ends).await {
                Ok(joined) => return Ok(joined),
                // What was said before tells more than that the time is over.
                Err(ConnectError::Timeout) if cut_short => return Err(last.unwrap_or(ConnectError::Timeout)),
                Err(error) => error,
            };
            if let ConnectError::Refused(refusal) = &error
                && refusal.code == CloseCode::Moved
                && moves < MAX_MOVES
            {
                named = self.named(&refusal.relays).into();
                moves += 1;
            }
            if !named.is_empty() {
                last = Some(error);
                continue;
            }
            if !error.is_retryable() {
                return Err(error);
            }
            moves = 0;
            if error.code().is_none() {
                if ticket.token.expires_at_unix <= Clock::start().unix_secs() {
                    return Err(error);
                }
                self.sockets.forget(&self.options);
            }
            let pause = backoff.next(error.retry_after(), backoff::random());
            if deadline.is_some_and(|deadline| pause >= deadline - Instant::now()) {
                return Err(error);
            }
            tracing::debug!(%error, pause_ms = pause.as_millis(), "no connection to the relay, trying again");
            last = Some(error);
            sleep(pause).await;
        }
    }

    /// Tries each target once.
    async fn move_to(&self, ticket: &Ticket, targets: &[Target]) -> Result<Joined, ConnectError> {
        let mut last = ConnectError::Timeout;
        for target in targets {
            match self.attempt(target, ticket, Instant::now() + ATTEMPT_TIMEOUT).await {
                Ok(joined) => return Ok(joined),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn attempt(&self, target: &Target, ticket: &Ticket, ends: Instant) -> Result<Joined, ConnectError> {
        let attempt = attempt(target, ticket, &self.options, &self.sockets);
        tokio::time::timeout_at(ends, attempt).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// The relays that one names, as far as the names make sense.
    fn named(&self, relays: &[RelayInfo]) -> Vec<Target> {
        relays.iter().take(MAX_RELAYS).filter_map(|info| Target::named(info, &self.unpinned)).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// In place of a connection that is lost or does not answer.
    Replace,
    /// The relay asked to move; the present connection works until the new one does.
    Move { until: Instant },
}

/// How a dial ended.
struct Dialed {
    purpose: Purpose,
    backoff: Backoff,
    result: Result<Box<Joined>, ConnectError>,
}

/// A joined connection that is not in charge yet.
struct Candidate {
    link: Arc<Link>,
    grant: Grant,
    times: ConnectTimes,
}

/// A token on its way to the relay.
struct PendingRefresh {
    token: Token,
    /// `None` when nobody asked: the token in use is newer than the one that made the allocation.
    answer: Option<oneshot::Sender<Result<Grant, RefreshError>>>,
    /// The connection it was sent on.
    sent_on: Option<u64>,
}

struct Driver {
    shared: Arc<Shared>,
    dialer: Arc<Dialer>,
    commands: mpsc::Receiver<Command>,
    reports: mpsc::Sender<(u64, Report)>,
    report_queue: mpsc::Receiver<(u64, Report)>,
    /// The tasks of all open connections: at most the one in charge, its successor, and those that linger.
    links: JoinSet<LinkEnd>,
    lingering: JoinSet<()>,
    next_link_id: u64,
    current: Option<Arc<Link>>,
    /// The connection in charge does not answer.
    stalled: bool,
    /// Joined at the relay to move to; takes over when the other side is there too, or at the given time.
    successor: Option<(Candidate, Instant)>,
    /// At most one dial at a time.
    dialing: Option<Pin<Box<dyn Future<Output = Dialed> + Send>>>,
    /// The relays that the last Migrate named.
    elsewhere: Vec<Target>,
    /// Moves since a connection was last stable.
    moves: u32,
    backoff: Backoff,
    refreshes: VecDeque<PendingRefresh>,
    /// The last connection that a token was shown on after joining.
    refreshed_on: Option<u64>,
    /// A token that is good enough to join with, but that the relay does not take as a refresh.
    refused_token: Option<TokenHash>,
    releasing: bool,
}

/// When the driver ends, however it ends, the session has.
struct Finally(Arc<Shared>);

impl Drop for Finally {
    fn drop(&mut self) {
        self.0.finish(End::Closed);
        self.0.state.send_modify(|state| state.drained = true);
    }
}

enum Wake {
    Ended,
    Report(u64, Report),
    LinkEnd(Option<LinkEnd>),
    Dialed(Dialed),
    MoveOverdue,
    Command(Command),
}

impl Driver {
    async fn run(mut self) {
        let _finally = Finally(self.shared.clone());
        let mut ended = self.shared.state.subscribe();
        loop {
            let overdue = self.successor.as_ref().map(|(_, at)| *at);
            let wake = tokio::select! {
                biased;
                _ = ended.wait_for(|state| state.end.is_some()) => Wake::Ended,
                // Before the links' ends: what a connection said last comes before its end.
                Some((id, report)) = self.report_queue.recv() => Wake::Report(id, report),
                Some(end) = self.links.join_next() => Wake::LinkEnd(end.ok()),
                dialed = poll(&mut self.dialing) => Wake::Dialed(dialed),
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => Wake::MoveOverdue,
                Some(command) = self.commands.recv(), if self.refreshes.len() < MAX_REFRESHES => Wake::Command(command),
                Some(_) = self.lingering.join_next() => continue,
            };
            match wake {
                Wake::Ended => break,
                Wake::Report(id, report) => self.on_report(id, report),
                Wake::LinkEnd(Some(end)) => self.on_link_end(end),
                Wake::LinkEnd(None) => self.on_link_panic(),
                Wake::Dialed(dialed) => {
                    self.dialing = None;
                    self.on_dialed(dialed);
                }
                Wake::MoveOverdue => self.promote(),
                Wake::Command(command) => self.on_command(command),
            }
        }
        self.dialing = None;
        let endpoints = self.dialer.sockets.all();
        let told = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
            while self.links.join_next().await.is_some() {}
        };
        let _ = timeout(DRAIN, told).await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Refresh { token, answer } => {
                self.refreshes.push_back(PendingRefresh { token, answer: Some(answer), sent_on: None });
                self.send_pending();
            }
            Command::Release if self.releasing => {}
            Command::Release => {
                self.releasing = true;
                if let Some(link) = &self.current {
                    say(link, ClientMessage::Release);
                }
            }
        }
    }

    fn on_report(&mut self, id: u64, report: Report) {
        let is_current = self.current.as_ref().is_some_and(|link| link.id == id);
        let is_successor = self.successor.as_ref().is_some_and(|(next, _)| next.link.id == id);
        match report {
            Report::Peer { present } if is_current => self.set_peer(present),
            Report::Peer { present: true } if is_successor => self.promote(),
            Report::Refreshed(refreshed) if is_current => self.on_refreshed(id, &refreshed),
            Report::Migrate(migrate) if is_current => self.on_migrate(&migrate),
            Report::Stalled if is_current => self.on_stalled(),
            Report::Stalled if is_successor => {
                if let Some((next, _)) = self.successor.take() {
                    next.link.close(CloseCode::Closed);
                }
            }
            // Of a connection that is not in charge any more, or not yet.
            Report::Peer { .. } | Report::Refreshed(_) | Report::Migrate(_) | Report::Stalled => {}
        }
    }

    fn set_peer(&self, present: bool) {
        if self.shared.set_peer(present) {
            self.shared.emit(if present { Event::PeerArrived } else { Event::PeerLeft });
        }
    }

    fn on_refreshed(&mut self, id: u64, refreshed: &Refreshed) {
        let mut grant = Grant::clone(&self.shared.grant.load());
        grant.refreshed(refreshed);
        if let Some(link) = &self.current {
            congestion::set_rate(&link.connection, grant.bandwidth_bytes_per_sec);
        }
        self.shared.grant.store(Arc::new(grant.clone()));
        self.shared.emit(Event::Refreshed { expires_at_unix: refreshed.expires_at });
        // Answers come in the order of the questions. Another expiry is the other side's refresh, told to both.
        if self.refreshes.front().is_some_and(|front| {
            front.sent_on == Some(id) && front.token.expires_at_unix == refreshed.expires_at
        }) && let Some(done) = self.refreshes.pop_front()
        {
            let ticket = Ticket { token: done.token, ..Ticket::clone(&self.shared.ticket.load()) };
            self.shared.ticket.store(Arc::new(ticket));
            if let Some(answer) = done.answer {
                // It fails when the caller has gone.
                let _ = answer.send(Ok(grant));
            }
        }
    }

    fn on_migrate(&mut self, migrate: &Migrate) {
        if self.dialing.is_some() || self.successor.is_some() || !self.dialer.options.reconnect {
            return;
        }
        self.note_stability();
        if self.moves >= MAX_MOVES {
            tracing::debug!("the relay asks to move too often, staying");
            return;
        }
        self.moves += 1;
        let deadline = Duration::from_millis(migrate.deadline_ms.into()).min(MAX_MOVE);
        self.elsewhere = self.dialer.named(&migrate.relays);
        self.shared.emit(Event::Migrating { deadline });
        if self.elsewhere.is_empty() {
            self.redial(None);
        } else {
            self.dial(Purpose::Move { until: Instant::now() + deadline }, Duration::ZERO);
        }
    }

    /// The connection in charge does not answer: makes another one, and keeps this one until that is joined.
    fn on_stalled(&mut self) {
        self.note_stability();
        self.stalled = true;
        if !self.dialer.options.reconnect {
            self.shared.finish(ConnectError::Timeout.into());
        } else if self.successor.is_some() {
            self.promote();
        } else if self.dialing.is_none() {
            self.redial(None);
        }
    }

    fn on_dialed(&mut self, Dialed { purpose, backoff, result }: Dialed) {
        match (purpose, result) {
            (Purpose::Replace, Ok(joined)) => {
                self.backoff = backoff;
                let next = self.add(*joined);
                if let Some(old) = self.put_in_charge(next) {
                    old.close(CloseCode::Closed);
                }
                self.shared.counters.reconnects.add(1);
            }
            (Purpose::Move { until }, Ok(joined)) => {
                let peer_present = joined.peer_present;
                let next = self.add(*joined);
                self.successor = Some((next, until));
                if peer_present || self.current.is_none() || self.stalled {
                    self.promote();
                }
            }
            (Purpose::Replace, Err(error)) => {
                if self.current.is_some() && !self.stalled {
                    tracing::debug!(%error, "no better connection, keeping this one");
                } else {
                    self.shared.finish(error.into());
                }
            }
            (Purpose::Move { .. }, Err(error)) => {
                tracing::debug!(%error, "cannot move");
                if self.current.is_none() || self.stalled {
                    self.redial(None);
                }
            }
        }
    }

    /// Puts the connection to the new relay in charge. The old one is read a little longer.
    fn promote(&mut self) {
        let Some((next, _)) = self.successor.take() else { return };
        if let Some(old) = self.put_in_charge(next) {
            self.lingering.spawn(async move {
                sleep(LINGER).await;
                old.close(CloseCode::Closed);
            });
        }
        self.shared.counters.reconnects.add(1);
        self.shared.counters.moves.add(1);
    }

    fn on_link_end(&mut self, LinkEnd { id, cause, was_answer }: LinkEnd) {
        self.shared.links.lock().unwrap_or_else(PoisonError::into_inner).retain(|link| link.id != id);
        if self.successor.as_ref().is_some_and(|(next, _)| next.link.id == id) {
            self.successor = None;
            return;
        }
        if self.current.as_ref().is_none_or(|link| link.id != id) {
            return;
        }
        self.note_stability();
        let target = self.current.take().map(|link| link.target.clone());
        tracing::debug!(%cause, "connection lost");
        if self.successor.is_some() {
            return self.promote();
        }
        let refused = self.take_refused_refresh(id, &cause, was_answer);
        if !self.dialer.options.reconnect || !(refused || cause.is_retryable()) {
            return self.shared.finish(cause.into());
        }
        self.shared.set_link(None);
        self.shared.tell_raw_channel();
        self.shared.set_peer(false);
        self.shared.emit(Event::Disconnected { reason: whole_story(&cause) });
        self.elsewhere.retain(|other| Some(other) != target.as_ref());
        self.elsewhere.splice(0..0, target);
        self.elsewhere.truncate(MAX_RELAYS);
        if self.dialing.is_none() {
            self.redial(cause.retry_after());
        }
    }

    /// A bug ended a connection's task. Its session gets another connection.
    fn on_link_panic(&mut self) {
        tracing::error!("a connection's task has panicked");
        if let Some(link) = &self.current {
            link.close(CloseCode::Internal);
            let end = LinkEnd { id: link.id, cause: ConnectError::Timeout, was_answer: false };
            self.on_link_end(end);
        }
    }

    /// When the connection ended because the relay did not like a refresh, tells who asked for it.
    fn take_refused_refresh(&mut self, id: u64, cause: &ConnectError, was_answer: bool) -> bool {
        // What went unanswered on the lost connection is to be sent again.
        let asked = self.refreshes.front().is_some_and(|front| front.sent_on == Some(id));
        for refresh in &mut self.refreshes {
            refresh.sent_on = None;
        }
        let mut refused = false;
        if let ConnectError::Refused(refusal) = cause
            && !asked
        {
            // Taken for accepted already, because the other side's refresh was told at the same time.
            refused = self.refreshed_on == Some(id) && was_answer && is_about_a_token(refusal.code);
        } else if let ConnectError::Refused(refusal) = cause
            && (was_answer || is_about_a_token(refusal.code))
            && let Some(front) = self.refreshes.pop_front()
        {
            refused = true;
            match front.answer {
                // It fails when the caller has gone.
                Some(answer) => drop(answer.send(Err(RefreshError::Refused(refusal.clone())))),
                None => self.refused_token = Some(front.token.hash),
            }
        }
        self.refreshes.retain(|refresh| refresh.answer.is_some());
        refused
    }

    /// Forgets earlier failures when the present connection has held for a while.
    fn note_stability(&mut self) {
        if self.current.as_ref().is_some_and(|link| link.since.elapsed() >= STABLE_AFTER) {
            self.backoff.reset();
            self.moves = 0;
        }
    }

    /// Makes another connection, where the last one was or where the relay said.
    fn redial(&mut self, retry_after: Option<Duration>) {
        let pause = self.backoff.next(retry_after, backoff::random());
        self.dial(Purpose::Replace, pause);
    }

    fn dial(&mut self, purpose: Purpose, pause: Duration) {
        let dialer = self.dialer.clone();
        let ticket = self.shared.ticket.load_full();
        let mut targets = self.elsewhere.clone();
        if purpose == Purpose::Replace && !targets.contains(&dialer.home) {
            targets.push(dialer.home.clone());
        }
        let mut backoff = self.backoff.clone();
        self.dialing = Some(Box::pin(async move {
            sleep(pause).await;
            let result = match purpose {
                Purpose::Replace => dialer.dial(&ticket, &targets, &mut backoff, None).await,
                Purpose::Move { .. } => dialer.move_to(&ticket, &targets).await,
            };
            Dialed { purpose, backoff, result: result.map(Box::new) }
        }));
    }

    /// Starts a connection's task.
    fn add(&mut self, joined: Joined) -> Candidate {
        let options = &self.dialer.options;
        let (grant, times) = (joined.grant.clone(), joined.times);
        let keep_alive = grant.keep_alive.filter(|asked| *asked < options.keep_alive);
        self.next_link_id += 1;
        let (link, parts) = Link::new(
            self.next_link_id,
            joined,
            keep_alive,
            options.datagram_send_buffer_bytes,
            &self.shared,
        );
        let ended = {
            let mut links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.push(link.clone());
            self.shared.state.borrow().end.is_some()
        };
        if ended {
            link.close(CloseCode::Closed);
        }
        self.links.spawn(link::run(link.clone(), parts, self.shared.clone(), self.reports.clone()));
        Candidate { link, grant, times }
    }

    /// From now on this connection carries what is sent. Yields the one that did until now.
    fn put_in_charge(&mut self, Candidate { link, grant, times }: Candidate) -> Option<Arc<Link>> {
        let remote = link.connection.remote_address();
        tracing::debug!(%remote, "connected to relay");
        let peer_present = link.peer_present.load(std::sync::atomic::Ordering::Relaxed);
        self.shared.grant.store(Arc::new(grant));
        self.shared.times.store(Arc::new(times));
        self.shared.set_link(Some(link.clone()));
        self.stalled = false;
        let old = self.current.replace(link);
        if self.next_link_id > 1 {
            self.shared.emit(Event::Connected { relay: remote });
        }
        self.shared.tell_raw_channel();
        self.set_peer(peer_present);
        // What another connection was asked and has not answered is asked again.
        for refresh in &mut self.refreshes {
            refresh.sent_on = None;
        }
        self.refreshes.retain(|refresh| refresh.answer.is_some());
        self.refresh_unasked();
        self.send_pending();
        if let Some(link) = self.current.as_ref().filter(|_| self.releasing) {
            say(link, ClientMessage::Release);
        }
        old
    }

    /// The other side may have made the allocation with an older token: then ours lengthens it.
    fn refresh_unasked(&mut self) {
        let token = &self.shared.ticket.load().token;
        let later = token.expires_at_unix > self.shared.grant.load().expires_at_unix;
        if later && self.refreshes.is_empty() && self.refused_token != Some(token.hash) {
            self.refreshes.push_back(PendingRefresh { token: token.clone(), answer: None, sent_on: None });
        }
    }

    fn send_pending(&mut self) {
        let Some(link) = &self.current else { return };
        for refresh in self.refreshes.iter_mut().filter(|refresh| refresh.sent_on.is_none()) {
            refresh.sent_on = Some(link.id);
            self.refreshed_on = Some(link.id);
            say(link, ClientMessage::Refresh(Refresh { token: refresh.token.bytes.clone() }));
        }
    }
}

/// Hands a message to the connection. There is room: the few refreshes, one release and three pings are fewer.
fn say(link: &Link, message: ClientMessage) {
    if link.control.try_send(message).is_err() {
        tracing::debug!("a connection on its way out takes no messages");
    }
}

/// Codes that speak of the token that was shown, not of the allocation.
fn is_about_a_token(code: CloseCode) -> bool {
    matches!(
        code,
        CloseCode::TokenInvalid
            | CloseCode::TokenExpired
            | CloseCode::AllocationMismatch
            | CloseCode::ProofInvalid
    )
}

/// An error and all that is behind it, in one line.
fn whole_story(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |story, cause| format!("{story}: {cause}"))
}

/// What is being dialed, if anything is.
async fn poll(dialing: &mut Option<Pin<Box<dyn Future<Output = Dialed> + Send>>>) -> Dialed {
    match dialing {
        Some(dialing) => dialing.await,
        None => std::future::pending().await,
    }
}
