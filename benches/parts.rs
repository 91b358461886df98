//! What the small parts cost that stand on the packet path or in a handshake.
//!
//! ```text
//! cargo bench --bench parts              # a quarter of a minute
//! cargo bench --bench parts -- meter     # those with this in their name
//! ```

use std::{
    hint::black_box,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use zrc_relay::{
    client::SigningKey,
    clock::Clock,
    table::{Limits, Meter, fair::Pool},
    wire::{
        AllocationId, DeviceId, PeerId, PublicKey, RelayId, Role, SignedToken, TokenFields,
        channel::{self, HEADER_LEN, Packet, Tag},
        control::{self, Allocated, ClientMessage, Hello, RelayMessage},
        proof::{self, Binding},
        token::Expected,
    },
};

/// What the rows of `benches/peers.sh` send.
const PAYLOAD_BYTES: usize = 1200;
/// The most that the kernel hands over at once.
const TRAIN_PACKETS: usize = 64;

const UNLIMITED: Limits =
    Limits { rate_bytes_per_sec: None, rate_packets_per_sec: None, quota_bytes: None, weight: 1 };
/// Every limit is there to be looked at, and none is ever reached.
const ALL_LIMITS: Limits = Limits {
    rate_bytes_per_sec: Some(1 << 50),
    rate_packets_per_sec: Some(1 << 40),
    quota_bytes: Some(u64::MAX - 1),
    weight: 1,
};

/// The default of an allocation.
const SLOW_BYTES_PER_SEC: u64 = 1_250_000;

criterion_group! {
    name = parts;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = meter, token, raw_channel, control_frames
}
criterion_main!(parts);

fn meter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("meter");
    group.throughput(Throughput::Elements(1));
    for (name, limits) in [("no limits", UNLIMITED), ("all limits", ALL_LIMITS)] {
        group.bench_function(format!("charge a datagram, {name}"), |bencher| {
            let (meter, mut now_nanos) = (Meter::new(limits, 0), 0);
            bencher.iter(|| charge(&meter, &mut now_nanos));
        });
        group.bench_function(format!("charge a datagram, {name}, two threads"), |bencher| {
            bencher.iter_custom(|times| contended(limits, times));
        });
    }
    // At this rate nothing is charged in advance, and each charge asks whether there is a limit of all together.
    let slow = Limits { rate_bytes_per_sec: Some(SLOW_BYTES_PER_SEC), ..ALL_LIMITS };
    for (name, pool) in [
        ("alone", None),
        ("where all together may be limited", Some(None)),
        ("where all together are limited", Some(Some(1 << 50))),
    ] {
        group.bench_function(format!("charge a datagram, 10 Mbit/s, {name}"), |bencher| {
            let pool = pool.map(|limit| Arc::new(Pool::new(limit)));
            let (meter, mut now_nanos) = (Meter::sharing(slow, 0, pool), 0);
            bencher.iter(|| {
                now_nanos += 1_000_000_000 * PAYLOAD_BYTES as u64 / SLOW_BYTES_PER_SEC;
                charge(&meter, &mut now_nanos);
            });
        });
    }
    group.finish();
}

/// The relay reads the clock once for all that it receives at once: here time passes by itself.
fn charge(meter: &Meter, now_nanos: &mut u64) {
    // So little that two threads, each with a time of its own, do not come to differ by a burst.
    *now_nanos += 1;
    let charged = meter.charge_datagram(*now_nanos, Role::Device, black_box(PAYLOAD_BYTES));
    assert!(charged.is_ok(), "a refusal costs something else");
}

/// How long so many charges take while another thread, too, charges the same meter without a pause.
fn contended(limits: Limits, times: u64) -> Duration {
    let meter = Arc::new(Meter::new(limits, 0));
    let (ready, done) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let other = thread::spawn({
        let (meter, ready, done) = (meter.clone(), ready.clone(), done.clone());
        move || {
            let mut now_nanos = 0;
            ready.wait();
            while !done.load(Relaxed) {
                charge(&meter, &mut now_nanos);
            }
        }
    });
    let mut now_nanos = 0;
    ready.wait();
    let clock = Clock::start();
    for _ in 0..times {
        charge(&meter, &mut now_nanos);
    }
    let took = clock.mono();
    done.store(true, Relaxed);
    assert!(other.join().is_ok());
    took
}

/// A token, and what it takes to show it.
fn signed() -> (SignedToken, SigningKey) {
    let (device, peer) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let fields = TokenFields {
        relay_id: RelayId([3; 16]),
        allocation_id: AllocationId([4; 16]),
        device_id: DeviceId(*device.verifying_key().as_bytes()),
        peer_id: PeerId(*peer.verifying_key().as_bytes()),
        expires_at_unix: 2_000_000_000,
        bandwidth_bytes_per_sec: 0,
        quota_bytes: 0,
    };
    (fields.sign(&device), device)
}

fn token(criterion: &mut Criterion) {
    let (token, device) = signed();
    let bytes = token.to_bytes();
    let expected = Expected {
        relay_id: &RelayId([3; 16]),
        allocation_id: &[4; 16],
        now_unix: 1_999_999_999,
        max_lifetime: None,
    };
    criterion.bench_function("token: parse, verify, check", |bencher| {
        bencher.iter(|| {
            let claims = SignedToken::from_bytes(black_box(&bytes))
                .and_then(|token| token.verify(&token.self_certified_key()?))
                .and_then(|verified| verified.check(&expected));
            assert!(claims.is_ok());
            claims
        });
    });

    let (key, hash, binding) = (PublicKey::from(&device), token.hash(), Binding::Exporter([5; 32]));
    let shown = proof::prove(&device, Role::Device, &hash, &binding);
    criterion.bench_function("proof: verify", |bencher| {
        bencher.iter(|| {
            assert!(proof::verifies(&key, Role::Device, &hash, black_box(&binding), &shown));
        });
    });
}

fn raw_channel(criterion: &mut Criterion) {
    let (tag, other) = (Tag::new(0, [6; 6]), Tag::new(0, [7; 6]));
    let packet = [&channel::data_header(tag)[..], &[0; PAYLOAD_BYTES]].concat();
    let mut group = criterion.benchmark_group("raw channel");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse a packet", |bencher| {
        bencher.iter(|| {
            let parsed = black_box(Packet::parse(black_box(&packet)));
            assert!(matches!(parsed, Some(Packet::Data { .. })));
        });
    });
    let mut train = packet.repeat(TRAIN_PACKETS);
    group.throughput(Throughput::Elements(TRAIN_PACKETS as u64));
    group.bench_function(format!("parse and readdress a train of {TRAIN_PACKETS}"), |bencher| {
        bencher.iter(|| {
            for packet in black_box(&mut train).chunks_mut(HEADER_LEN + PAYLOAD_BYTES) {
                assert!(matches!(black_box(Packet::parse(packet)), Some(Packet::Data { .. })));
                channel::readdress(packet, other);
            }
        });
    });
    group.finish();
}

fn control_frames(criterion: &mut Criterion) {
    let (token, _) = signed();
    let hello = ClientMessage::Hello(Hello {
        token: Bytes::copy_from_slice(&token.to_bytes()),
        role: Role::Device,
        allocation_id: Bytes::copy_from_slice(&[4; 16]),
        proof: Some(Bytes::from_static(&[8; 64])),
        features: Vec::new(),
        agent: "zrc-relay/0".into(),
    });
    let allocated = RelayMessage::Allocated(Allocated {
        allocation_id: Bytes::from_static(&[4; 16]),
        relay_addr: "192.0.2.1".into(),
        relay_port: 4433,
        expires_at: 2_000_000_000,
        observed_addr: "198.51.100.2:40000".into(),
        max_datagram_bytes: 1200,
        ..Allocated::default()
    });
    let (hello, allocated) = (body(&hello.to_frame()), body(&allocated.to_frame()));
    let mut group = criterion.benchmark_group("control frames");
    group.bench_function("parse a Hello", |bencher| {
        bencher.iter(|| ClientMessage::parse(black_box(&hello).clone()));
    });
    group.bench_function("parse an Allocated", |bencher| {
        bencher.iter(|| RelayMessage::parse(black_box(&allocated).clone()));
    });
    group.finish();
    assert!(ClientMessage::parse(hello).is_ok() && RelayMessage::parse(allocated).is_ok());
}

/// A frame without its length.
fn body(frame: &Bytes) -> Bytes {
    frame.slice(control::HEADER_LEN.min(frame.len())..)
}
