//! One meter, many threads: what shards do to the meter of an allocation whose legs they share.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use zrc_relay::{
    table::{Denied, Limits, Meter, fair::Pool},
    wire::Role,
};

const THREADS: u64 = 16;
const ROUNDS: u64 = 5_000;

/// Sends from sixteen threads, by both legs, at one moment until nothing passes any more, some of it refused by the other leg;
/// what the threads say has passed is what the meter says.
fn storm(limits: Limits) -> Meter {
    let meter = Meter::new(limits, 0);
    let barrier = Barrier::new(THREADS as usize);
    let [bytes_passed, datagrams_passed] = [AtomicU64::new(0), AtomicU64::new(0)];
    let send = |thread: u64, round: u64| {
        let from = Role::BOTH[(thread % 2) as usize];
        let size = 100 + ((round * 7 + thread * 31) % 400) as usize;
        if round % 5 < 2 {
            let Ok(granted) = meter.charge_stream(1_000, from, size) else { return };
            let unwritten = if round.is_multiple_of(5) { granted / 2 } else { 0 };
            meter.refund_stream(from, unwritten);
            bytes_passed.fetch_add((granted - unwritten) as u64, Relaxed);
        } else if meter.charge_datagram(1_000, from, size).is_ok() {
            if round % 5 == 2 {
                return meter.refund_datagram(from, size);
            }
            bytes_passed.fetch_add(size as u64, Relaxed);
            datagrams_passed.fetch_add(1, Relaxed);
        }
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (send, barrier) = (&send, &barrier);
            scope.spawn(move || {
                barrier.wait();
                (0..ROUNDS).for_each(|round| send(thread, round));
            });
        }
    });
    let counts = Role::BOTH.map(|role| meter.counts(role));
    assert_eq!(counts.iter().map(|counts| counts.bytes).sum::<u64>(), bytes_passed.load(Relaxed));
    assert_eq!(counts.iter().map(|counts| counts.packets).sum::<u64>(), datagrams_passed.load(Relaxed));
    assert_eq!(meter.bytes_used(), bytes_passed.load(Relaxed));
    meter
}

#[test]
fn many_threads_use_the_quota_to_its_last_byte_and_not_beyond() {
    let quota_bytes = Some(1_000_003);
    let meter = storm(Limits { quota_bytes, ..Limits::default() });
    assert_eq!(Some(meter.bytes_used()), quota_bytes);
}

/// So large that datagrams are charged in advance, until its end is near.
#[test]
fn many_threads_use_a_large_quota_to_its_last_byte_and_not_beyond() {
    let quota_bytes = Some(8_000_003);
    let meter = storm(Limits { quota_bytes, ..Limits::default() });
    assert_eq!(Some(meter.bytes_used()), quota_bytes);
}

#[test]
fn many_threads_take_one_large_burst_and_not_more() {
    let limits = Limits {
        rate_bytes_per_sec: Some(60_000_000),
        rate_packets_per_sec: Some(600_000),
        ..Limits::default()
    };
    let (burst_bytes, passed_bytes) = (6_000_000, storm(limits).bytes_used());
    // The last advance is not used up, and was not filled when this began.
    assert!(passed_bytes <= burst_bytes && passed_bytes > burst_bytes - 2 * 64 * 1024, "{passed_bytes}");
}

#[test]
fn many_threads_take_one_burst_and_not_more() {
    let rate_bytes_per_sec = Some(1_000_000);
    let meter = storm(Limits { rate_bytes_per_sec, ..Limits::default() });
    let burst_bytes = meter.burst_bytes().unwrap();
    // Each part of a stream that is given back may cost its nanosecond, which is a byte at most.
    let passed_bytes = meter.bytes_used();
    assert!(passed_bytes <= burst_bytes && passed_bytes > burst_bytes - 500, "{passed_bytes}");
}

#[test]
fn many_threads_send_as_many_packets_as_the_burst_has_and_not_more() {
    let rate_packets_per_sec = Some(2_000);
    let meter = storm(Limits { rate_packets_per_sec, ..Limits::default() });
    assert_eq!(Role::BOTH.map(|role| meter.counts(role).packets).iter().sum::<u64>(), 200);
}

#[test]
fn r8_what_is_charged_stays_exact_while_the_limit_changes() {
    const QUOTA: u64 = 50_000_000;
    const LIMIT: u64 = 10_000_000;
    const WORKERS: usize = 4;
    let pool = Arc::new(Pool::new(None));
    let limits = Limits { quota_bytes: Some(QUOTA), ..Limits::default() };
    let meter = Meter::sharing(limits, 0, Some(pool.clone()));
    let passed = [AtomicU64::new(0), AtomicU64::new(0)];
    let working = AtomicUsize::new(WORKERS);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (meter, passed, working) = (&meter, &passed, &working);
            scope.spawn(move || {
                let role = if worker % 2 == 0 { Role::Device } else { Role::Peer };
                let bytes = 700 + worker;
                for round in 1.. {
                    // Time runs fast, so that the buckets seldom hold anybody up.
                    let charged = match worker {
                        0 | 1 => meter.charge_datagram(round * 1_000_000, role, bytes).map(|()| bytes),
                        _ => meter.charge_stream(round * 1_000_000, role, bytes),
                    };
                    match charged {
                        Ok(bytes) if round % 7 == 0 && worker < 2 => meter.refund_datagram(role, bytes),
                        Ok(bytes) => drop(passed[role.index()].fetch_add(bytes as u64, Relaxed)),
                        Err(Denied::Quota) => break,
                        Err(_) => {}
                    }
                }
                working.fetch_sub(1, Relaxed);
            });
        }
        let mut limit = None;
        while working.load(Relaxed) > 0 {
            limit = match limit {
                None => Some(LIMIT),
                Some(LIMIT) => Some(100 * LIMIT),
                Some(_) => None,
            };
            pool.set_limit(meter.last_activity_nanos(), limit);
            meter.follow_pool(meter.last_activity_nanos());
            meter.set_share(meter.last_activity_nanos(), LIMIT);
            thread::yield_now();
        }
    });
    for role in Role::BOTH {
        assert_eq!(meter.counts(role).bytes, passed[role.index()].load(Relaxed), "{role}");
    }
    let all = passed.iter().map(|bytes| bytes.load(Relaxed)).sum::<u64>();
    assert_eq!(meter.bytes_used(), all);
    // Nothing is left but what the smallest of them could not use.
    assert!(all <= QUOTA && QUOTA - all < 1000, "{all}");
}
