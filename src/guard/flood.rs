//! Whether callers whose address is not proven are answered, and how: rises with floods, falls by itself.
//!
//! Two numbers decide, over all shards. *Unproven* counts the attempts of unproven addresses that have not been
//! followed by a proof, a finished handshake or a Retry token that came back: it drains by itself, so that it
//! measures a rate. Above `retry_above` of them each caller first proves its address with a Retry, which
//! costs a packet and no signature. *Answers* is a bucket of `silence_above` a second, out of which every answer to an
//! unproven address is paid, whatever the level: beyond, there is silence, and for most a packet is dropped before
//! anything has been computed for it.
//!
//! Nobody is counted here by address: the one in a forged packet is its victim's.

use std::time::Duration;

use super::GuardLevel as Level;

/// How long an unproven attempt counts: as long as a handshake may take.
pub const ATTEMPT_TIME: Duration = Duration::from_secs(5);
/// How long it must be quiet before the guard falls by one level.
pub const QUIET_TIME: Duration = Duration::from_secs(5);

/// Where the thresholds are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Unproven attempts, of the last [`ATTEMPT_TIME`], above which every caller is sent a Retry.
    pub retry_above: u32,
    /// Answers to unproven addresses in a second above which there is silence; `None` for no bound.
    pub silence_above: Option<u32>,
}

/// What an attempt from an unproven address gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unproven {
    /// Its handshake.
    Handshake,
    /// A Retry.
    Retry,
    /// Nothing.
    Silence,
}

/// The state, told the time: monotonic, never back.
#[derive(Debug)]
pub struct Flood {
    thresholds: Thresholds,
    level: Level,
    at: Duration,
    /// Attempts without a proof yet.
    unproven: f64,
    /// Answers that may be given now; for callers without a token.
    answers: f64,
    /// Callers with a token that may be looked at, at [`Level::Silence`]: whether it is one costs something too.
    tokens: f64,
    /// When unproven attempts were last above half of the threshold.
    busy_at: Option<Duration>,
    /// When somebody was last not answered.
    silent_at: Option<Duration>,
}

impl Flood {
    pub fn new(thresholds: Thresholds) -> Self {
        let mut flood = Self {
            thresholds,
            level: Level::Normal,
            at: Duration::ZERO,
            unproven: 0.0,
            answers: 0.0,
            tokens: 0.0,
            busy_at: None,
            silent_at: None,
        };
        flood.configure(thresholds);
        flood
    }

    /// Changes the thresholds; full buckets, the same level until time or the next attempt changes it.
    pub fn configure(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
        let full = thresholds.silence_above.map_or(f64::MAX, f64::from);
        (self.answers, self.tokens) = (full, full);
        self.unproven = self.unproven.min(self.most_unproven());
        if thresholds.retry_above == 0 {
            self.level = self.level.max(Level::Retry);
        }
    }

    /// Attempts without a proof yet, as far as they are counted.
    pub fn unproven(&self) -> u64 {
        self.unproven as u64
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// An attempt from an address without a proof.
    pub fn attempt(&mut self, now: Duration) -> Unproven {
        self.advance(now);
        if self.answers < 1.0 {
            self.fall_silent(now);
            return Unproven::Silence;
        }
        self.answers -= 1.0;
        self.unproven = (self.unproven + 1.0).min(self.most_unproven());
        if self.unproven > f64::from(self.thresholds.retry_above) {
            self.level = self.level.max(Level::Retry);
        }
        self.advance(now);
        if self.level == Level::Normal { Unproven::Handshake } else { Unproven::Retry }
    }

    /// An address has proven itself: a handshake finished, or a Retry token came back.
    pub fn proven(&mut self, now: Duration) {
        self.advance(now);
        self.unproven = (self.unproven - 1.0).max(0.0);
    }

    /// Whether a packet that begins a connection need not even be looked at: at [`Level::Silence`], beyond what is
    /// answered. A packet with a token takes its part of what is looked at; one without is counted when it is
    /// answered.
    pub fn overlooks(&mut self, now: Duration, with_token: bool) -> bool {
        if self.level < Level::Silence {
            return false;
        }
        self.advance(now);
        let room = if with_token { &mut self.tokens } else { &mut self.answers };
        if *room < 1.0 {
            self.silent_at = Some(now);
            return true;
        }
        if with_token {
            *room -= 1.0;
        }
        false
    }

    /// Whether something may be answered that is not even an attempt: an unknown version.
    pub fn may_answer(&mut self, now: Duration) -> bool {
        self.advance(now);
        if self.answers < 1.0 {
            self.fall_silent(now);
            return false;
        }
        self.answers -= 1.0;
        true
    }

    /// Lets time pass: call it now and then, so that the level falls when nobody comes.
    pub fn advance(&mut self, now: Duration) {
        let Thresholds { retry_above, silence_above } = self.thresholds;
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let drained = f64::from(retry_above.max(1)) * passed / ATTEMPT_TIME.as_secs_f64();
        self.unproven = (self.unproven - drained).max(0.0);
        if let Some(rate) = silence_above.map(f64::from) {
            self.answers = (self.answers + rate * passed).min(rate);
            self.tokens = (self.tokens + rate * passed).min(rate);
        }
        if self.unproven > f64::from(retry_above) / 2.0 {
            self.busy_at = Some(now);
        }
        let quiet = |since: Option<Duration>| since.is_none_or(|since| now >= since + QUIET_TIME);
        if self.level == Level::Silence && quiet(self.silent_at) {
            self.level = Level::Retry;
            // One step at a time: what was overlooked was not counted as unproven.
            self.busy_at = Some(now);
        }
        if self.level == Level::Retry && retry_above > 0 && quiet(self.busy_at) {
            self.level = Level::Normal;
        }
    }

    fn fall_silent(&mut self, now: Duration) {
        self.silent_at = Some(now);
        self.level = Level::Silence;
    }

    /// A flood of any size is forgotten in a bounded time.
    fn most_unproven(&self) -> f64 {
        f64::from(self.thresholds.retry_above) * 2.0 + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SEC: Duration = Duration::from_secs(1);

    fn flood(retry_above: u32, silence_above: u32) -> Flood {
        Flood::new(Thresholds { retry_above, silence_above: Some(silence_above) })
    }

    /// Attempts at this interval; how many got what.
    fn attempts(flood: &mut Flood, now: &mut Duration, times: u32, interval: Duration) -> [u32; 3] {
        let mut got = [0; 3];
        for _ in 0..times {
            match flood.attempt(*now) {
                Unproven::Handshake => got[0] += 1,
                Unproven::Retry => got[1] += 1,
                Unproven::Silence => got[2] += 1,
            }
            *now += interval;
        }
        got
    }

    #[test]
    fn r6_3_attempts_that_are_proven_never_raise_the_guard() {
        let mut flood = flood(10, 10_000);
        let mut now = SEC;
        for _ in 0..100_000 {
            assert_eq!(flood.attempt(now), Unproven::Handshake);
            flood.proven(now + MS);
            now += MS;
        }
        assert_eq!(flood.level(), Level::Normal);
    }

    #[test]
    fn r6_3_unfinished_handshakes_raise_the_guard_and_it_falls_by_itself() {
        let mut flood = flood(100, 10_000);
        let mut now = SEC;
        let [handshakes, retries, silence] = attempts(&mut flood, &mut now, 1000, MS);
        assert!((100..130).contains(&handshakes), "{handshakes}");
        assert_eq!((retries, silence), (1000 - handshakes, 0));
        assert_eq!(flood.level(), Level::Retry);
        // As long as it lasts, it stays: no further handshake, however long.
        let [handshakes, ..] = attempts(&mut flood, &mut now, 60_000, MS);
        assert_eq!(handshakes, 0);
        // Then it falls within a bounded time, without anybody coming.
        let ended = now;
        while flood.level() != Level::Normal {
            now += 250 * MS;
            flood.advance(now);
        }
        let took = now - ended;
        assert!(took >= QUIET_TIME && took <= 3 * QUIET_TIME, "{took:?}");
        assert_eq!(flood.attempt(now), Unproven::Handshake);
    }

    #[test]
    fn r6_3_above_the_rate_there_is_silence_and_then_retry_and_then_none() {
        let mut flood = flood(100, 1000);
        let mut now = SEC;
        // 10 000 a second, for ten seconds.
        let [handshakes, retries, silence] = attempts(&mut flood, &mut now, 100_000, MS / 10);
        assert!(handshakes <= 110, "{handshakes}");
        assert!(
            (10_000..=11_100).contains(&(handshakes + retries)),
            "{retries}: 1000 a second and one burst"
        );
        assert_eq!(handshakes + retries + silence, 100_000);
        assert_eq!(flood.level(), Level::Silence);
        let mut seen = vec![Level::Silence];
        while flood.level() != Level::Normal {
            now += 250 * MS;
            flood.advance(now);
            if seen.last() != Some(&flood.level()) {
                seen.push(flood.level());
            }
            assert!(now < Duration::from_secs(60));
        }
        assert_eq!(seen, [Level::Silence, Level::Retry, Level::Normal]);
    }

    /// What is overlooked costs nothing, and keeps the guard up.
    #[test]
    fn r6_3_at_silence_packets_are_overlooked_beyond_the_rate() {
        let mut flood = flood(10, 100);
        let mut now = SEC;
        assert!(!flood.overlooks(now, false), "nothing is overlooked before");
        attempts(&mut flood, &mut now, 200, Duration::ZERO);
        assert_eq!(flood.level(), Level::Silence);
        assert!(flood.overlooks(now, false));
        // With a token: a second's rate of them, then no more.
        assert_eq!((0..200).filter(|_| !flood.overlooks(now, true)).count(), 100);
        now += SEC / 2;
        let (mut answered, mut looked_at) = (0, 0);
        for _ in 0..1000 {
            if !flood.overlooks(now, false) {
                looked_at += 1;
                answered += u32::from(flood.attempt(now) == Unproven::Retry);
            }
        }
        assert_eq!((answered, looked_at), (50, 50));
        for _ in 0..60 {
            now += SEC;
            for _ in 0..200 {
                let _ = flood.overlooks(now, true);
            }
            assert_eq!(flood.level(), Level::Silence, "tokens without end keep it up as well");
        }
        now += QUIET_TIME;
        assert!(!flood.overlooks(now, false));
    }

    #[test]
    fn r6_3_other_answers_come_out_of_the_same_bucket() {
        let mut flood = flood(10, 100);
        assert_eq!((0..1000).filter(|_| flood.may_answer(SEC)).count(), 100);
        assert_eq!(flood.level(), Level::Silence);
        assert_eq!(flood.attempt(SEC), Unproven::Silence);
        assert_eq!((0..1000).filter(|_| flood.may_answer(SEC * 2)).count(), 100);
    }

    #[test]
    fn zero_asks_everybody_first_and_no_bound_is_none() {
        let mut flood = Flood::new(Thresholds { retry_above: 0, silence_above: None });
        let mut now = Duration::ZERO;
        assert_eq!(attempts(&mut flood, &mut now, 100_000, Duration::ZERO), [0, 100_000, 0]);
        now += Duration::from_secs(3600);
        flood.advance(now);
        assert_eq!(flood.level(), Level::Retry);
        assert_eq!(flood.attempt(now), Unproven::Retry);
        flood.configure(Thresholds { retry_above: 5, silence_above: None });
        flood.advance(now + 3 * QUIET_TIME);
        assert_eq!(flood.attempt(now + 3 * QUIET_TIME), Unproven::Handshake);
    }
}
