//! A congestion controller for what is relayed.
//!
//! What crosses a leg is mostly under congestion control already, its sender's own, end to end. A controller that
//! takes every lost packet for congestion would be a second one in series: on a path that loses some packets
//! whatever is sent, it holds back what would have fitted. Streams, on the other hand, are spliced and have no
//! controller but this one. So it goes by what is delivered, in the manner of BBR: the window is the highest rate
//! of delivery lately seen, times the shortest round trip lately seen, times a gain.
//!
//! # Rounds
//!
//! A round ends with the first acknowledgement of a packet that was sent after the round began. It yields one
//! sample of the rate: the bytes acknowledged in it, over the time in which they were acknowledged or sent,
//! whichever is longer. Peers acknowledge in lumps, ten packets or tens of milliseconds at a time; what came in the
//! largest lump is added to the window, or the sender would stand still until the next one.
//!
//! A round in which the application had nothing more to send says little about the path. Its sample counts only
//! when it is the highest, and the window stays well above it: a sender that grows finds room, and one that shares
//! the path with a flow that fills the path's buffers keeps its rate while the round trip grows
//! ([`OTHERS_QUEUE`]).
//!
//! # Phases
//!
//! | phase | gain | until |
//! |---|---|---|
//! | startup | grows by what is acknowledged, halts while packets queue | a queue stands, much is lost, or three rounds bring nothing |
//! | up | 1.25; 2 once that has paid | two rounds bring nothing, or packets queue |
//! | down | 0.75, but no less than half of what was in flight | one round: what *up* left in queues drains |
//! | cruise | 1.0 | four to seven rounds; flows that share a path do not probe in step |
//! | shortest | 0.5 | two rounds, when the shortest round trip has not been seen for [`MIN_RTT_MEMORY`] |
//!
//! Startup never shrinks the window, so that a flow that only its application limits starts with a wide one and
//! keeps it.
//!
//! # Loss
//!
//! A share of losses that does not significantly exceed a tenth is taken for a property of the path. More ends a
//! startup or an *up*, and until an *up* passes without, the window is no wider than the model says even for an
//! application that sends less. If such a round also delivered much less than the model expects, the model starts
//! over from that round. A few percent together with a standing queue are congestion too, and make the window
//! smaller step by step, down to half. A packet marked by the path (ECN) ends a startup or an *up*.
//!
//! # The allocation's rate
//!
//! [`set_rate`] tells it once a token is accepted. A connection then starts at that rate instead of finding it out,
//! and never has much more in flight than that rate fills: quinn paces at 1.25 windows a round trip, so what
//! leaves comes near to what the relay's meter lets pass. Without a rate the model alone decides.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use super::{acks::MAX_ACK_DELAY, moves};

/// What may be in flight before anything is known: a path of 10 ms at 50 Mbit/s is full.
const INITIAL_WINDOW_BYTES: u64 = 64 * 1024;
/// And at most where the rate is known: 40 Mbit/s over 100 ms. A path that carries more shows it within rounds; one
/// that carries less has to hold this much once.
const MAX_INITIAL_WINDOW_BYTES: u64 = 512 * 1024;
/// 5 Gbit/s over 100 ms.
const MAX_WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// What is always allowed, in packets of the path's MTU.
const MIN_WINDOW_PACKETS: u64 = 4;
/// Beyond the allocation's rate, in packets: as many as quinn's pacer lets go at once, and some.
const RATE_SLACK_PACKETS: u64 = 16;
/// How much faster than the allocation's rate may be sent. The rate counts payload; packets are larger, and some
/// are sent again.
const RATE_GAIN: f64 = 1.5;

/// Rounds on short paths are no shorter than this, or scheduling would be measured instead of the path.
const MIN_ROUND: Duration = Duration::from_millis(10);
/// The shortest round trip that the model reckons with, for the same reason.
const MIN_MODEL_RTT: Duration = Duration::from_millis(2);
/// How long the shortest round trip is remembered; at most twice as long.
const MIN_RTT_MEMORY: Duration = Duration::from_secs(5);
/// For how many rounds the highest rate and the largest lump are remembered; at most twice as many.
const MEMORY_ROUNDS: u8 = 5;
/// Peers are asked to acknowledge every tenth packet.
const LUMP_PACKETS: u64 = 12;
/// A lump counts for no more than comes in [`MAX_ACK_DELAY`], and these packets: with a peer that acknowledges in
/// larger ones, the window would grow by its own size each time.
const LUMP_SLACK_PACKETS: u64 = 16;
/// By how much the round trip may grow from what others put into the path's buffers before it slows down a flow
/// that sends less than the path would carry. As much may such a flow put there itself.
const OTHERS_QUEUE: Duration = Duration::from_millis(200);
/// Packets have waited in a queue when their round trip was longer than the shortest by a quarter and this.
const QUEUE_MARGIN: Duration = Duration::from_millis(4);

/// A startup goes on while a round is this much faster than any before.
const STARTUP_GROWTH: f64 = 1.25;
const STARTUP_ROUNDS: u8 = 3;
/// An *up* has paid when a round is this much faster; its gain makes 1.25 at most.
const UP_GROWTH: f64 = 1.15;
/// Fewer packets say nothing about a path's losses.
const MIN_LOSS_PACKETS: f64 = 20.0;
/// After so many packets older ones count half.
const LOSS_MEMORY_PACKETS: f64 = 500.0;
/// A greater share of losses is no property of a path.
const OVERDONE_LOSS: f64 = 0.1;
/// This share of losses, together with a standing queue, is congestion.
const QUEUED_LOSS: f64 = 0.03;
/// What that makes of the window, each time, and what cruising without makes of it.
const PRESSED: f64 = 0.85;
const RELIEVED: f64 = 1.1;
const MOST_PRESSED: f64 = 0.5;

/// In place of the allocation's rate where there is none.
const NO_RATE: u64 = u64::MAX;

/// Tells a connection's controller the rate that its allocation has, in bytes per second; `None`: no limit.
///
/// To be told again when the path has changed: quinn then makes a new controller.
pub(crate) fn set_rate(connection: &quinn::Connection, bytes_per_sec: Option<u64>) {
    set_rate_of(connection.congestion_state(), bytes_per_sec);
}

/// quinn hands out copies, which share the place where the rate is.
pub(super) fn set_rate_of(controller: Box<dyn Controller>, bytes_per_sec: Option<u64>) {
    if let Ok(controller) = controller.into_any().downcast::<RateBased>() {
        controller.rate_limit.store(bytes_per_sec.unwrap_or(NO_RATE), Relaxed);
    }
}

/// What a connection's controller was told last; `None` also for another kind of controller.
#[cfg(test)]
pub(crate) fn rate(connection: &quinn::Connection) -> Option<u64> {
    let controller = connection.congestion_state().into_any().downcast::<RateBased>().ok()?;
    Some(controller.rate_limit.load(Relaxed)).filter(|rate| *rate != NO_RATE)
}

/// Makes a [`RateBased`] controller for each path.
#[derive(Debug)]
pub(crate) struct RateBasedFactory {
    /// Differs for each path, so that those who share a link do not probe in step.
    next_seed: AtomicU32,
}

impl RateBasedFactory {
    pub(crate) fn new() -> Self {
        let mut seed = [0; 4];
        // Without randomness they probe in step, which costs some of the link.
        let _ = getrandom::fill(&mut seed);
        Self::seeded(u32::from_ne_bytes(seed))
    }

    pub(super) fn seeded(seed: u32) -> Self {
        Self { next_seed: AtomicU32::new(seed) }
    }
}

impl ControllerFactory for RateBasedFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        moves::path_began();
        let seed = self.next_seed.fetch_add(1, Relaxed);
        Box::new(RateBased::new(now, current_mtu, seed))
    }
}

/// One path's congestion controller.
#[derive(Debug, Clone)]
pub(crate) struct RateBased {
    /// Bytes per second. Shared with all copies.
    rate_limit: Arc<AtomicU64>,
    mtu: u64,
    window: u64,
    phase: Phase,
    round: Round,
    lump: Lump,
    /// When the newest of the acknowledged packets was sent.
    newest_sent: Instant,
    /// quinn's own estimate, as its pacer uses it.
    smoothed_rtt: Duration,

    /// Bytes per second.
    rate: Recent<f64>,
    lump_bytes: Recent<f64>,
    /// Rounds since the two were last shifted.
    memory_rounds: u8,
    min_rtt: Recent<Duration>,
    min_rtt_shifted: Instant,
    /// When a round trip about as short as the shortest was last seen.
    min_rtt_seen: Instant,

    /// The last round was limited by the application.
    app_limited: bool,
    /// Much has been lost, and no *up* has passed without since.
    overdone: bool,
    losses: Losses,
    /// What loss together with queues has made of the window, 1 at most.
    press: f64,
    random: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Startup {
        /// What has been reached.
        window: u64,
        best_rate: f64,
        /// In a row, in which the rate did not grow.
        idle_rounds: u8,
        /// After persistent congestion the allocation's rate is no promise.
        again: bool,
    },
    Up {
        rounds: u8,
        from_rate: f64,
        paid: bool,
    },
    Down {
        least: u64,
    },
    Cruise {
        rounds: u8,
        rounds_left: u8,
    },
    Shortest {
        rounds: u8,
    },
}

/// What has happened since the round began.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    /// When the newest packet was sent that had been acknowledged before.
    sent_before: Instant,
    acked_bytes: u64,
    min_rtt: Option<Duration>,
    peak_in_flight: u64,
    app_limited: bool,
    /// By the path (ECN).
    marked: bool,
}

/// The acknowledgement that is being worked on.
#[derive(Debug, Clone, Copy, Default)]
struct Lump {
    bytes: u64,
    newest_sent: Option<Instant>,
}

/// What was acknowledged and what was lost, lately.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    acked_packets: f64,
    acked_bytes: f64,
    lost_bytes: f64,
}

/// An extreme over this span and the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Recent<T> {
    now: Option<T>,
    before: Option<T>,
}

impl<T: Copy + PartialOrd> Recent<T> {
    fn only(value: T) -> Self {
        Self { now: Some(value), before: None }
    }

    fn see_larger(&mut self, value: T) {
        if self.now.is_none_or(|now| value > now) {
            self.now = Some(value);
        }
    }

    fn see_smaller(&mut self, value: T) {
        if self.now.is_none_or(|now| value < now) {
            self.now = Some(value);
        }
    }

    fn shift(&mut self) {
        self.before = self.now.take();
    }

    fn largest(&self) -> Option<T> {
        match (self.now, self.before) {
            (Some(now), Some(before)) if before > now => Some(before),
            (now, before) => now.or(before),
        }
    }

    fn smallest(&self) -> Option<T> {
        match (self.now, self.before) {
            (Some(now), Some(before)) if before < now => Some(before),
            (now, before) => now.or(before),
        }
    }
}

impl Round {
    fn new(began: Instant, sent_before: Instant) -> Self {
        Self {
            began,
            sent_before,
            acked_bytes: 0,
            min_rtt: None,
            peak_in_flight: 0,
            app_limited: false,
            marked: false,
        }
    }

    /// Bytes per second.
    fn rate(&self, now: Instant, newest_sent: Instant) -> f64 {
        let acked_in = now.saturating_duration_since(self.began);
        let sent_in = newest_sent.saturating_duration_since(self.sent_before);
        self.acked_bytes as f64 / acked_in.max(sent_in).max(MIN_ROUND).as_secs_f64()
    }
}

impl Losses {
    /// Whether more than this share was lost, significantly: by two standard deviations.
    fn exceed(&self, share: f64) -> bool {
        let packet_bytes = self.acked_bytes / self.acked_packets.max(1.0);
        let lost = self.lost_bytes / packet_bytes.max(64.0);
        let all = lost + self.acked_packets;
        all >= MIN_LOSS_PACKETS && lost - share * all > 2.0 * (share * (1.0 - share) * all).sqrt()
    }

    /// Lets what has been counted weigh half.
    fn age(&mut self) {
        self.acked_packets /= 2.0;
        self.acked_bytes /= 2.0;
        self.lost_bytes /= 2.0;
    }
}

impl Phase {
    fn startup(window: u64, again: bool) -> Self {
        Self::Startup { window, best_rate: 0.0, idle_rounds: 0, again }
    }

    /// Whether it tries for more than is known to fit.
    fn is_pushing(&self) -> bool {
        matches!(self, Self::Startup { .. } | Self::Up { .. })
    }

    /// Whether what was acknowledged in a round was limited by this phase, or by the one before.
    fn is_holding_back(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Shortest { .. } | Self::Cruise { rounds: 0, .. })
    }
}

impl RateBased {
    fn new(now: Instant, mtu: u16, seed: u32) -> Self {
        Self {
            rate_limit: Arc::new(AtomicU64::new(NO_RATE)),
            mtu: mtu.into(),
            window: INITIAL_WINDOW_BYTES,
            phase: Phase::startup(INITIAL_WINDOW_BYTES, false),
            round: Round::new(now, now),
            lump: Lump::default(),
            newest_sent: now,
            smoothed_rtt: Duration::ZERO,
            rate: Recent::default(),
            lump_bytes: Recent::default(),
            memory_rounds: 0,
            min_rtt: Recent::default(),
            min_rtt_shifted: now,
            min_rtt_seen: now,
            app_limited: false,
            overdone: false,
            losses: Losses::default(),
            press: 1.0,
            // Any number but 0, and far from its neighbours.
            random: seed.wrapping_mul(0x9e37_79b9) | 1,
        }
    }

    fn packet_acked(&mut self, sent: Instant, bytes: u64, smoothed_rtt: Duration) {
        self.smoothed_rtt = smoothed_rtt;
        self.losses.acked_packets += 1.0;
        self.losses.acked_bytes += bytes as f64;
        self.lump.bytes = self.lump.bytes.saturating_add(bytes);
        self.lump.newest_sent = self.lump.newest_sent.max(Some(sent));
    }

    fn lump_acked(&mut self, now: Instant, in_flight: u64, app_limited: bool) {
        let Lump { bytes, newest_sent: Some(newest_sent) } = std::mem::take(&mut self.lump) else { return };
        let rtt = now.saturating_duration_since(newest_sent);
        self.saw_round_trip(now, rtt);
        self.newest_sent = self.newest_sent.max(newest_sent);
        self.lump_bytes.see_larger(bytes as f64);
        self.round.acked_bytes = self.round.acked_bytes.saturating_add(bytes);
        self.round.peak_in_flight = self.round.peak_in_flight.max(in_flight.saturating_add(bytes));
        self.round.app_limited |= app_limited;

        let queued = self.queued(rtt);
        if let Phase::Startup { window, .. } = &mut self.phase {
            if !app_limited && !queued {
                *window = window.saturating_add(bytes).min(MAX_WINDOW_BYTES);
            }
            // A round is long when a startup overshoots.
            if self.losses.exceed(OVERDONE_LOSS) {
                self.losses = Losses::default();
                self.overdone = true;
                self.phase = down(&self.round);
            }
        }
        let round_took = now.saturating_duration_since(self.round.began);
        if self.newest_sent >= self.round.began && round_took >= MIN_ROUND {
            self.end_round(now);
        }
        self.fit_window();
    }

    fn saw_round_trip(&mut self, now: Instant, rtt: Duration) {
        if self.min_rtt.smallest().is_none_or(|min| rtt <= min + min / 16) {
            self.min_rtt_seen = now;
        }
        if now.saturating_duration_since(self.min_rtt_shifted) >= MIN_RTT_MEMORY {
            self.min_rtt_shifted = now;
            self.min_rtt.shift();
        }
        self.min_rtt.see_smaller(rtt);
        self.round.min_rtt = Some(self.round.min_rtt.map_or(rtt, |min| min.min(rtt)));
    }

    /// Whether packets with this round trip have waited in a queue.
    fn queued(&self, rtt: Duration) -> bool {
        self.min_rtt.smallest().is_some_and(|min| rtt > min + min / 4 + QUEUE_MARGIN)
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now, self.newest_sent));
        let rate = round.rate(now, self.newest_sent);
        let queue_stands = round.min_rtt.is_some_and(|rtt| self.queued(rtt));
        self.app_limited = round.app_limited;
        self.saw_rate(rate);

        let overdone = self.losses.exceed(OVERDONE_LOSS);
        if overdone {
            self.losses = Losses::default();
        } else if self.losses.acked_packets > LOSS_MEMORY_PACKETS {
            self.losses.age();
        }
        if !self.app_limited {
            let expected = self.rate.largest().unwrap_or(0.0);
            let slower = match (overdone, queue_stands, self.phase.is_holding_back()) {
                (true, _, false) => rate < 0.7 * expected,
                (true, _, true) => rate < 0.4 * expected,
                (false, true, false) => rate < 0.35 * expected,
                _ => false,
            };
            if slower {
                self.rate = Recent::only(rate);
            }
        }
        self.overdone |= overdone;
        self.phase = if (overdone || round.marked) && self.phase.is_pushing() {
            down(&round)
        } else {
            self.next_phase(now, &round, rate, queue_stands)
        };
    }

    fn saw_rate(&mut self, rate: f64) {
        if !self.app_limited {
            self.memory_rounds += 1;
            if self.memory_rounds >= MEMORY_ROUNDS {
                self.memory_rounds = 0;
                self.rate.shift();
                self.lump_bytes.shift();
            }
        }
        if !self.app_limited || self.rate.largest().is_none_or(|largest| rate > largest) {
            self.rate.see_larger(rate);
        }
    }

    fn next_phase(&mut self, now: Instant, round: &Round, rate: f64, queue_stands: bool) -> Phase {
        let best = self.rate.largest().unwrap_or(rate);
        let min_rtt_is_old = now.saturating_duration_since(self.min_rtt_seen) > MIN_RTT_MEMORY;
        match self.phase {
            Phase::Startup { window, best_rate, idle_rounds, again } => {
                let grew = rate >= STARTUP_GROWTH * best_rate;
                let idle_rounds = match (grew, self.app_limited) {
                    (true, _) => 0,
                    (false, true) => idle_rounds,
                    (false, false) => idle_rounds + 1,
                };
                if idle_rounds >= STARTUP_ROUNDS || (queue_stands && !self.app_limited) {
                    return down(round);
                }
                let best_rate = if grew { rate } else { best_rate };
                Phase::Startup { window, best_rate, idle_rounds, again }
            }
            Phase::Shortest { rounds: 0 } => Phase::Shortest { rounds: 1 },
            Phase::Shortest { .. } => {
                self.min_rtt_seen = now;
                self.cruise()
            }
            _ if min_rtt_is_old && !self.app_limited => Phase::Shortest { rounds: 0 },
            Phase::Up { rounds: 0, from_rate, paid } => Phase::Up { rounds: 1, from_rate, paid },
            Phase::Up { from_rate, .. } => {
                self.overdone = false;
                if rate >= UP_GROWTH * from_rate && !queue_stands {
                    return Phase::Up { rounds: 0, from_rate: rate, paid: true };
                }
                down(round)
            }
            Phase::Down { .. } => self.cruise(),
            Phase::Cruise { rounds_left: 0, .. } => {
                let congested = queue_stands && self.losses.exceed(QUEUED_LOSS);
                self.losses.age();
                let press = self.press * if congested { PRESSED } else { RELIEVED };
                self.press = press.clamp(MOST_PRESSED, 1.0);
                Phase::Up { rounds: 0, from_rate: best, paid: false }
            }
            Phase::Cruise { rounds, rounds_left } => {
                Phase::Cruise { rounds: rounds + 1, rounds_left: rounds_left - 1 }
            }
        }
    }

    fn cruise(&mut self) -> Phase {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        Phase::Cruise { rounds: 0, rounds_left: 3 + (self.random & 3) as u8 }
    }

    /// What fills the path, by the model, and the largest lump.
    fn model(&self, gain: f64, rtt: Duration) -> f64 {
        gain * self.rate.largest().unwrap_or(0.0) * rtt.as_secs_f64() + self.lump()
    }

    /// What may be in flight and have arrived already, for want of an acknowledgement.
    ///
    /// A window of fewer packets than a peer lets come before it acknowledges them would have each wait for the
    /// peer's timer. Where that is what limits the rate, half as much again lets the window grow out of it.
    fn lump(&self) -> f64 {
        let within_delay = self.rate.largest().unwrap_or(0.0) * MAX_ACK_DELAY.as_secs_f64();
        let most = within_delay + (LUMP_SLACK_PACKETS * self.mtu) as f64;
        let least = (1.5 * within_delay).min((LUMP_PACKETS * self.mtu) as f64);
        self.lump_bytes.largest().unwrap_or(0.0).min(most).max(least)
    }

    fn fit_window(&mut self) {
        let rtt = self.min_rtt.smallest().unwrap_or(self.smoothed_rtt).max(MIN_MODEL_RTT);
        let roomy = || self.model(2.0, rtt).max(self.model(1.0, rtt + OTHERS_QUEUE));
        let is_roomy = self.app_limited && !self.overdone;
        let rate_limit = self.rate_limit.load(Relaxed);
        let mut bytes = match self.phase {
            Phase::Startup { window, again, .. } => {
                let model = if is_roomy { roomy() } else { self.model(2.0, rtt) };
                let at_rate = match rate_limit {
                    NO_RATE => 0.0,
                    _ if again => 0.0,
                    rate => rate as f64 * (self.smoothed_rtt + MAX_ACK_DELAY).as_secs_f64(),
                };
                model.max(at_rate.min(MAX_INITIAL_WINDOW_BYTES as f64)).max(window as f64)
            }
            _ if is_roomy => roomy(),
            Phase::Up { paid, .. } => self.press * self.model(if paid { 2.0 } else { 1.25 }, rtt),
            Phase::Down { least } => self.model(0.75, rtt).max(least as f64),
            Phase::Cruise { .. } => self.press * self.model(1.0, rtt),
            Phase::Shortest { .. } => self.model(0.5, rtt),
        };
        if rate_limit != NO_RATE {
            let smoothed = self.smoothed_rtt.max(MIN_MODEL_RTT);
            let rate = rate_limit as f64;
            let slack =
                (RATE_SLACK_PACKETS * self.mtu) as f64 + self.lump().min(rate * MAX_ACK_DELAY.as_secs_f64());
            bytes = bytes.min(RATE_GAIN * rate * smoothed.as_secs_f64() + slack);
        }
        self.window = (bytes as u64).clamp(MIN_WINDOW_PACKETS * self.mtu, MAX_WINDOW_BYTES);
    }
}

/// What was pushed into queues is to drain: but the queues may be others', so not all at once.
fn down(round: &Round) -> Phase {
    Phase::Down { least: round.peak_in_flight / 2 }
}

impl Controller for RateBased {
    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        self.packet_acked(sent, bytes, rtt.get());
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        self.lump_acked(now, in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, _sent: Instant, persistent: bool, lost_bytes: u64) {
        if persistent {
            let (random, mtu) = (self.random, self.mtu);
            let window = MIN_WINDOW_PACKETS * mtu;
            *self = Self {
                rate_limit: self.rate_limit.clone(),
                mtu,
                window,
                phase: Phase::startup(window, true),
                random,
                ..Self::new(now, 0, 0)
            };
        } else if lost_bytes == 0 {
            self.round.marked = true;
        } else {
            self.losses.lost_bytes += lost_bytes as f64;
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(MIN_WINDOW_PACKETS * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        // For a path that differs in its port alone.
        moves::path_began();
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::simulation::some_time, *};

    const MTU: u16 = 1452;
    const MS: Duration = Duration::from_millis(1);

    /// What a path of 50 ms answers to a sender: one call a round trip, all that is in flight acknowledged.
    struct Rounds {
        controller: RateBased,
        now: Instant,
    }

    impl Rounds {
        fn new() -> Self {
            let now = some_time();
            Self { controller: RateBased::new(now, MTU, 0), now }
        }

        fn round(&mut self, bytes: u64, app_limited: bool) {
            let sent = self.now;
            self.now += 50 * MS;
            self.controller.packet_acked(sent, bytes, 50 * MS);
            self.controller.lump_acked(self.now, 0, app_limited);
        }

        fn lose(&mut self, bytes: u64, persistent: bool) {
            self.controller.on_congestion_event(self.now, self.now, persistent, bytes);
        }

        fn window(&self) -> u64 {
            self.controller.window()
        }
    }

    /// In startup no longer: at 1.25 MB a round.
    fn settled() -> Rounds {
        let mut rounds = Rounds::new();
        for _ in 0..20 {
            rounds.round(1_250_000, false);
        }
        assert!(!matches!(rounds.controller.phase, Phase::Startup { .. }));
        rounds
    }

    #[test]
    fn a_startup_doubles_while_it_pays_and_ends_when_it_does_not() {
        let mut rounds = Rounds::new();
        assert_eq!(rounds.window(), INITIAL_WINDOW_BYTES);
        for _ in 0..4 {
            let before = rounds.window();
            rounds.round(before, false);
            assert!(rounds.window() >= 2 * before);
        }
        let most = rounds.window();
        for _ in 0..4 {
            rounds.round(600_000, false);
        }
        assert!(rounds.window() <= most && !matches!(rounds.controller.phase, Phase::Startup { .. }));
    }

    #[test]
    fn an_application_that_sends_little_keeps_the_initial_window() {
        let mut rounds = Rounds::new();
        for _ in 0..1000 {
            rounds.round(2000, true);
            assert_eq!(rounds.window(), INITIAL_WINDOW_BYTES);
        }
    }

    #[test]
    fn what_the_application_did_not_use_is_not_forgotten() {
        let mut rounds = settled();
        let before = rounds.controller.rate.largest();
        for _ in 0..1000 {
            rounds.round(2000, true);
        }
        assert_eq!(rounds.controller.rate.largest(), before);
        assert!(rounds.window() >= 2 * 1_250_000);
        // While a path that carries less is noticed.
        for _ in 0..2 * MEMORY_ROUNDS {
            rounds.round(125_000, false);
        }
        assert!(rounds.controller.rate.largest() < before);
    }

    #[test]
    fn a_tenth_of_loss_is_no_signal_and_a_fifth_is() {
        for (lost_percent, overdone) in [(5, false), (10, false), (20, true)] {
            let mut rounds = Rounds::new();
            for _ in 0..30 {
                for _ in 0..100 - lost_percent {
                    rounds.controller.packet_acked(rounds.now, 1200, 50 * MS);
                }
                rounds.lose(1200 * lost_percent, false);
                rounds.round(1200, true);
            }
            assert_eq!(rounds.controller.overdone, overdone, "{lost_percent} %");
            assert_eq!(
                matches!(rounds.controller.phase, Phase::Startup { .. }),
                !overdone,
                "{lost_percent} %"
            );
        }
    }

    #[test]
    fn few_losses_among_few_packets_are_no_signal() {
        let mut rounds = Rounds::new();
        for _ in 0..3 {
            rounds.round(1200, true);
            rounds.lose(1200, false);
        }
        rounds.round(1200, true);
        assert!(!rounds.controller.overdone);
    }

    #[test]
    fn a_marked_packet_ends_a_push() {
        let mut rounds = Rounds::new();
        rounds.round(60_000, false);
        rounds.lose(0, false);
        rounds.round(60_000, false);
        assert!(matches!(rounds.controller.phase, Phase::Down { .. }));
        assert!(!rounds.controller.overdone);
    }

    #[test]
    fn persistent_congestion_starts_over_from_the_least() {
        let mut rounds = settled();
        set_rate_of(rounds.controller.clone_box(), Some(10_000_000));
        rounds.round(1_250_000, false);
        rounds.lose(1_000_000, true);
        assert_eq!(rounds.window(), MIN_WINDOW_PACKETS * u64::from(MTU));
        // The allocation's rate is not believed this time, but still bounds.
        rounds.round(5000, false);
        assert!(rounds.window() < 20_000, "{}", rounds.window());
        for _ in 0..10 {
            rounds.round(rounds.window(), false);
        }
        assert!((600_000..1_300_000).contains(&rounds.window()), "{}", rounds.window());
    }

    #[test]
    fn the_rate_reaches_the_live_controller_through_a_copy() {
        let mut rounds = Rounds::new();
        let copy = rounds.controller.clone_box();
        set_rate_of(copy, Some(3_000_000));
        rounds.round(1200, true);
        // More than a round trip's worth, and no more than with as much again for the acknowledgement.
        assert!((200_000..300_000).contains(&rounds.window()), "{}", rounds.window());
        set_rate_of(rounds.controller.clone_box(), Some(30_000_000));
        rounds.round(1200, true);
        assert_eq!(rounds.window(), MAX_INITIAL_WINDOW_BYTES);
        set_rate_of(rounds.controller.clone_box(), Some(10_000));
        rounds.round(1200, true);
        assert!(rounds.window() < 30_000, "{}", rounds.window());
        set_rate_of(rounds.controller.clone_box(), None);
        rounds.round(1200, true);
        assert_eq!(rounds.window(), INITIAL_WINDOW_BYTES);
    }

    #[test]
    fn controllers_of_one_endpoint_do_not_probe_in_step() {
        let factory = Arc::new(RateBasedFactory::new());
        let cruises = || {
            let built = factory.clone().build(some_time(), MTU).into_any();
            let mut controller = *built.downcast::<RateBased>().unwrap();
            (0..16).map(|_| format!("{:?}", controller.cruise())).collect::<Vec<_>>()
        };
        let all: std::collections::BTreeSet<_> = (0..32).map(|_| cruises()).collect();
        assert_eq!(all.len(), 32);
    }

    #[test]
    fn a_path_costs_little_memory() {
        assert!(size_of::<RateBased>() <= 512, "{}", size_of::<RateBased>());
    }

    #[derive(Debug, Clone)]
    enum Call {
        Ack { sent_before_ms: u64, bytes: u64, smoothed_rtt_ms: u64 },
        EndAcks { in_flight: u64, app_limited: bool },
        Lost { persistent: bool, bytes: u64 },
        Mtu(u16),
        Rate(Option<u64>),
        Pass { micros: u64 },
    }

    /// Everyday sizes and the ends of the range.
    fn any_bytes() -> impl Strategy<Value = u64> {
        prop_oneof![0..3000_u64, 0..10_000_000_u64, any::<u64>(), Just(u64::MAX)]
    }

    fn any_time() -> impl Strategy<Value = u64> {
        prop_oneof![0..100_u64, 0..100_000_u64, 0..1_u64 << 40]
    }

    fn any_call() -> impl Strategy<Value = Call> {
        prop_oneof![
            6 => (any_time(), any_bytes(), any_time()).prop_map(|(sent_before_ms, bytes, smoothed_rtt_ms)| {
                Call::Ack { sent_before_ms, bytes, smoothed_rtt_ms }
            }),
            6 => (any_bytes(), any::<bool>())
                .prop_map(|(in_flight, app_limited)| Call::EndAcks { in_flight, app_limited }),
            2 => (prop::bool::weighted(0.05), any_bytes())
                .prop_map(|(persistent, bytes)| Call::Lost { persistent, bytes }),
            1 => any::<u16>().prop_map(Call::Mtu),
            1 => prop::option::of(any_bytes()).prop_map(Call::Rate),
            6 => any_time().prop_map(|micros| Call::Pass { micros }),
        ]
    }

    proptest! {
        #[test]
        fn the_window_stays_within_its_bounds_whatever_happens(
            calls in prop::collection::vec(any_call(), 0..400),
        ) {
            // Whoever calls may err about times, too.
            let mut now = some_time() + Duration::from_secs(1 << 32);
            let mut controller = RateBased::new(now, MTU, 7);
            for call in calls {
                match call {
                    Call::Ack { sent_before_ms, bytes, smoothed_rtt_ms } => {
                        let sent = now - Duration::from_millis(sent_before_ms.min(1 << 30));
                        controller.packet_acked(sent, bytes, Duration::from_millis(smoothed_rtt_ms));
                    }
                    Call::EndAcks { in_flight, app_limited } => controller.lump_acked(now, in_flight, app_limited),
                    Call::Lost { persistent, bytes } => {
                        controller.on_congestion_event(now, now, persistent, bytes);
                    }
                    Call::Mtu(mtu) => controller.on_mtu_update(mtu.max(1200)),
                    Call::Rate(rate) => set_rate_of(controller.clone_box(), rate),
                    Call::Pass { micros } => now += Duration::from_micros(micros),
                }
                let least = MIN_WINDOW_PACKETS * controller.mtu;
                prop_assert!((least..=MAX_WINDOW_BYTES).contains(&controller.window()));
                prop_assert!((MOST_PRESSED..=1.0).contains(&controller.press));
                prop_assert!(controller.rate.largest().is_none_or(f64::is_finite));
            }
        }
    }
}
