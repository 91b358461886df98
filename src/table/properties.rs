//! What the meter promises for every sequence of charges. `tests/it/meter.rs` has it with several threads.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::wire::Role;

/// What one sender asks of the meter.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Datagram(usize),
    Stream(usize),
    /// A datagram that the other leg refuses.
    Refused(usize),
    /// A stream that writes only some of what it charged.
    Short(usize, usize),
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        4 => (0..1500_usize).prop_map(Ask::Datagram),
        1 => (0..70_000_usize).prop_map(Ask::Datagram),
        3 => (0..200_000_usize).prop_map(Ask::Stream),
        1 => (0..70_000_usize).prop_map(Ask::Refused),
        1 => (0..200_000_usize, 0..200_000_usize).prop_map(|(want, unwritten)| Ask::Short(want, unwritten)),
    ]
}

fn rate() -> impl Strategy<Value = u64> {
    prop_oneof![
        1..100_u64,
        1_000..200_000_u64,
        100_000..2_000_000_000_u64,
        Just(1_250_000),
        Just(u64::from(u32::MAX)),
        1..u64::MAX,
    ]
}

/// Pauses from nothing to seconds, in nanoseconds.
fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..1_000_u64, 0..1_000_000_u64, 0..200_000_000_u64, 0..3_000_000_000_u64]
}

/// Asks, and says how many bytes and datagrams have passed in the end.
fn carry(meter: &Meter, now_nanos: u64, from: Role, ask: Ask) -> (u64, u64, Option<Denied>) {
    let outcome = match ask {
        Ask::Datagram(bytes) => meter.charge_datagram(now_nanos, from, bytes).map(|()| (bytes, 1)),
        Ask::Stream(want) => meter.charge_stream(now_nanos, from, want).map(|bytes| (bytes, 0)),
        Ask::Refused(bytes) => meter.charge_datagram(now_nanos, from, bytes).map(|()| {
            meter.refund_datagram(from, bytes);
            (0, 0)
        }),
        Ask::Short(want, unwritten) => meter.charge_stream(now_nanos, from, want).map(|bytes| {
            let unwritten = unwritten.min(bytes);
            meter.refund_stream(from, unwritten);
            (bytes - unwritten, 0)
        }),
    };
    match outcome {
        Ok((bytes, packets)) => (bytes as u64, packets, None),
        Err(denied) => (0, 0, Some(denied)),
    }
}

/// Of all windows that begin and end with a charge: `passed <= rate x window + burst`, to the last unit.
fn within_rate(passed: &[(u64, u64)], rate_per_sec: u64, burst: u64) -> Result<(), TestCaseError> {
    for (first, &(begin_nanos, _)) in passed.iter().enumerate() {
        let mut sum = 0;
        for &(end_nanos, units) in &passed[first..] {
            sum += u128::from(units);
            let by_rate = u128::from(rate_per_sec) * u128::from(end_nanos - begin_nanos);
            let allowed = by_rate + u128::from(burst) * 1_000_000_000;
            prop_assert!(sum * 1_000_000_000 <= allowed, "{sum} in {} ns", end_nanos - begin_nanos);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_window_no_more_than_the_rate_and_one_burst(
        rate_bytes_per_sec in rate(),
        rate_packets_per_sec in rate(),
        start_nanos in 0..1_000_000_000_000_u64,
        asks in prop::collection::vec((pause(), any::<bool>(), ask()), 1..120),
    ) {
        let limits = Limits {
            rate_bytes_per_sec: Some(rate_bytes_per_sec),
            rate_packets_per_sec: Some(rate_packets_per_sec),
            ..Limits::default()
        };
        let meter = Meter::new(limits, 0);
        let (mut now_nanos, mut bytes_passed, mut packets_passed) = (start_nanos, vec![], vec![]);
        for (pause_nanos, from_device, ask) in asks {
            now_nanos += pause_nanos;
            let from = if from_device { Role::Device } else { Role::Peer };
            let (bytes, packets, _) = carry(&meter, now_nanos, from, ask);
            bytes_passed.push((now_nanos, bytes));
            packets_passed.push((now_nanos, packets));
        }
        let burst_bytes = meter.burst_bytes().unwrap();
        prop_assert_eq!(burst_bytes, (rate_bytes_per_sec / 10).max(16_384));
        within_rate(&bytes_passed, rate_bytes_per_sec, burst_bytes)?;
        within_rate(&packets_passed, rate_packets_per_sec, (rate_packets_per_sec / 10).max(16))?;
    }

    /// Where datagrams are charged in advance, the rates hold all the same, for trains of any length.
    #[test]
    fn charges_in_advance_do_not_lift_the_rates(
        rate_bytes_per_sec in 5_000_000..80_000_000_u64,
        rate_packets_per_sec in prop_oneof![Just(None), (5_000..60_000_u64).prop_map(Some)],
        asks in prop::collection::vec((0..30_000_000_u64, any::<bool>(), 1..200_usize, 1..64_usize), 1..25),
    ) {
        let limits = Limits {
            rate_bytes_per_sec: Some(rate_bytes_per_sec),
            rate_packets_per_sec,
            ..Limits::default()
        };
        let meter = Meter::new(limits, 0);
        let (mut now_nanos, mut bytes_passed, mut packets_passed) = (0, vec![], vec![]);
        for (pause_nanos, from_device, trains, packets) in asks {
            now_nanos += pause_nanos;
            let from = if from_device { Role::Device } else { Role::Peer };
            let mut passed = 0;
            for train in 0..trains {
                if meter.charge_datagrams(now_nanos, from, packets, packets * 1000).is_ok() {
                    passed += packets as u64;
                    if train % 9 == 0 {
                        meter.refund_datagrams(from, packets, packets * 1000);
                        passed -= packets as u64;
                    }
                }
            }
            bytes_passed.push((now_nanos, passed * 1000));
            packets_passed.push((now_nanos, passed));
        }
        within_rate(&bytes_passed, rate_bytes_per_sec, meter.burst_bytes().unwrap())?;
        if let Some(rate) = rate_packets_per_sec {
            within_rate(&packets_passed, rate, rate / 10)?;
        }
    }

    #[test]
    fn what_is_held_back_passes_when_it_was_said_to_and_not_before(
        rate_bytes_per_sec in rate(),
        before in prop::collection::vec((pause(), ask()), 0..40),
        asked in prop_oneof![(1..16_000_usize).prop_map(Ask::Datagram), (1..200_000_usize).prop_map(Ask::Stream)],
    ) {
        let limits = Limits { rate_bytes_per_sec: Some(rate_bytes_per_sec), ..Limits::default() };
        let meter = Meter::new(limits, 0);
        let mut now_nanos = 1;
        for (pause_nanos, ask) in before {
            now_nanos += pause_nanos;
            carry(&meter, now_nanos, Role::Device, ask);
        }
        if let (.., Some(Denied::ByteRate(wait))) = carry(&meter, now_nanos, Role::Device, asked) {
            let wait_nanos = wait.as_nanos() as u64;
            prop_assert!(wait_nanos > 0);
            let early = carry(&meter, now_nanos + wait_nanos - 1, Role::Device, asked).2;
            prop_assert_eq!(early, Some(Denied::ByteRate(Duration::from_nanos(1))));
            prop_assert_eq!(carry(&meter, now_nanos + wait_nanos, Role::Device, asked).2, None);
        }
    }

    #[test]
    fn the_quota_is_exact_and_every_byte_is_counted_once(
        quota_bytes in prop_oneof![0..300_000_u64, Just(u64::MAX)],
        used_before in 0..200_000_u64,
        asks in prop::collection::vec((any::<bool>(), ask()), 1..120),
    ) {
        let limits = Limits { quota_bytes: Some(quota_bytes), ..Limits::default() };
        let meter = Meter::new(limits, used_before);
        let mut expected = [Counts::default(); 2];
        for (from_device, ask) in asks {
            let from = if from_device { Role::Device } else { Role::Peer };
            let left = quota_bytes.saturating_sub(meter.bytes_used());
            let (bytes, packets, denied) = carry(&meter, 0, from, ask);
            match (ask, denied) {
                (Ask::Datagram(bytes) | Ask::Refused(bytes), Some(denied)) => {
                    prop_assert_eq!(denied, Denied::Quota);
                    prop_assert!(bytes as u64 > left || used_before > quota_bytes);
                }
                (Ask::Stream(_) | Ask::Short(..), Some(denied)) => {
                    prop_assert_eq!((denied, left), (Denied::Quota, 0));
                }
                (Ask::Stream(want), None) => prop_assert_eq!(bytes, left.min(want as u64)),
                (_, None) => {}
            }
            expected[from.index()].bytes += bytes;
            expected[from.index()].packets += packets;
            prop_assert_eq!(Role::BOTH.map(|role| meter.counts(role)), expected);
            let passed: u64 = expected.iter().map(|counts| counts.bytes).sum();
            prop_assert_eq!(meter.bytes_used(), used_before + passed);
            prop_assert!(passed == 0 || meter.bytes_used() <= quota_bytes);
        }
    }

    /// The rate that holds for a window in which the rate changed is the highest of those.
    #[test]
    fn changing_the_rate_earns_nothing(
        rates in prop::collection::vec(1_000..10_000_000_u64, 1..8),
        asks in prop::collection::vec((pause(), ask(), 0..12_usize), 1..100),
    ) {
        let limits = |rate| Limits { rate_bytes_per_sec: Some(rate), ..Limits::default() };
        let meter = Meter::new(limits(rates[0]), 0);
        let (mut now_nanos, mut passed) = (0, vec![]);
        for (pause_nanos, ask, change) in asks {
            now_nanos += pause_nanos;
            if let Some(rate) = rates.get(change) {
                meter.set_limits(limits(*rate));
            }
            passed.push((now_nanos, carry(&meter, now_nanos, Role::Peer, ask).0));
        }
        let highest = *rates.iter().max().unwrap();
        within_rate(&passed, highest, (highest / 10).max(16_384))?;
    }
}
