//! The six promises of the relay as properties, over real connections: whatever the case, they hold.
//!
//! 1 signature before allocation, 2 rate, 3 quota, 4 expiry, 5 integrity, 6 isolation. The meter's and the table's
//! own properties stand beside them; these hold the relay to the same from outside.

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use quinn::VarInt;
use tokio::runtime::Runtime;

use super::*;
use crate::wire::VerifiedTokens;
use crate::{
    table::{Now, Table},
    wire::control::{Prove, Refresh},
};

/// Runs `property` on 256 cases. A failing case is shrunk and shown with the seed that makes it again.
fn hold<S: Strategy>(cases: S, property: impl Fn(&Runtime, S::Value) -> Result<(), TestCaseError>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // A case that fails by waiting in vain takes its patience; shrink a little, not for an hour.
    let config = Config { cases: 256, max_shrink_iters: 8, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    runner.run(&cases, |case| property(&runtime, case)).unwrap();
}

fn block<T>(runtime: &Runtime, work: impl Future<Output = T>) -> T {
    runtime.block_on(soon(work))
}

#[test]
fn property_1_no_allocation_without_a_valid_signature_and_proof() {
    #[derive(Debug, Clone)]
    enum Forgery {
        Token(prop::sample::Index, u8),
        TokenLength(usize),
        Proof(prop::sample::Index, u8),
        AnotherKey,
    }
    let forgeries = prop_oneof![
        4 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, mask)| Forgery::Token(at, mask)),
        1 => (0_usize..400).prop_filter("the right length", |len| *len != 180).prop_map(Forgery::TokenLength),
        2 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, mask)| Forgery::Proof(at, mask)),
        1 => Just(Forgery::AnotherKey),
    ];
    let setup = Runtime::new().unwrap();
    let harness = setup.block_on(async { Harness::start() });
    hold((forgeries, any::<bool>()), |runtime, (forgery, as_device)| {
        let role = if as_device { Role::Device } else { Role::Peer };
        let pair = harness.pair();
        let code = block(runtime, async {
            let raw = harness.connect().await;
            let mut hello = raw.hello(&pair, role);
            let mut token = hello.token.to_vec();
            let mut proof = hello.proof.unwrap().to_vec();
            match forgery {
                Forgery::Token(at, mask) => {
                    let at = at.index(token.len());
                    token[at] ^= mask;
                }
                Forgery::TokenLength(len) => token.resize(len, 0),
                Forgery::Proof(at, mask) => {
                    let at = at.index(proof.len());
                    proof[at] ^= mask;
                }
                Forgery::AnotherKey => {
                    let thief = harness.pair();
                    let thief = Pair { token: pair.token.clone(), ..thief };
                    proof = raw.hello(&thief, role).proof.unwrap().to_vec();
                }
            }
            hello.token = token.into();
            hello.proof = Some(proof.into());
            raw.begin(&ClientMessage::Hello(hello).to_frame()).await.close_code().await
        });
        prop_assert!(matches!(code, CloseCode::TokenInvalid | CloseCode::ProofInvalid), "{}", code);
        prop_assert_eq!(harness.metric("zrc_relay_allocations_created_total"), 0);
        Ok(())
    });
}

#[test]
fn property_2_never_more_than_the_rate_and_one_burst() {
    let setup = Runtime::new().unwrap();
    let harness = setup.block_on(async { Harness::start() });
    hold((20_000_u32..2_000_000, vec(0_usize..1100, 1..120)), |runtime, (rate, sizes)| {
        let pair = harness.pair_with(|fields| fields.bandwidth_bytes_per_sec = rate);
        let (received, elapsed, burst) = block(runtime, async {
            let (device, peer) = harness.joined_pair(&pair).await;
            let burst = device.allocated.burst_bytes.unwrap();
            let started = harness.clock.mono();
            for (n, size) in sizes.iter().enumerate() {
                let from = if n % 3 == 0 { &peer } else { &device };
                from.send_datagram(vec![n as u8; *size]);
            }
            // A stream waits for what datagrams do not get: it is the last to arrive.
            let mut send = device.connection().open_uni().await.unwrap();
            send.write_all(&[1; 3000]).await.unwrap();
            send.finish().unwrap();
            let mut recv = peer.connection().accept_uni().await.unwrap();
            let mut received = recv.read_to_end(4000).await.unwrap().len();
            for side in [&device, &peer] {
                while let Ok(Ok(datagram)) =
                    timeout(Duration::from_millis(1), side.connection().read_datagram()).await
                {
                    received += datagram.len();
                }
            }
            // After the last that counts: the relay may take datagrams after a stream that was sent behind them.
            (received as u64, harness.clock.mono() - started, burst)
        });
        let most = u128::from(burst) + u128::from(rate) * elapsed.as_nanos() / 1_000_000_000;
        prop_assert!(u128::from(received) <= most, "{} of {} in {:?}", received, most, elapsed);
        Ok(())
    });
}

#[test]
fn property_3_never_more_than_the_quota_whoever_sends() {
    let setup = Runtime::new().unwrap();
    let harness = setup.block_on(async { Harness::start() });
    hold((1_u64..20_000, vec(1_usize..1100, 1..60)), |runtime, (quota, sizes)| {
        let pair = harness.pair_with(|fields| fields.quota_bytes = quota);
        let (received, ended) = block(runtime, async {
            let (device, peer) = harness.joined_pair(&pair).await;
            let reading = |side: &Joined| {
                let connection = side.connection().clone();
                tokio::spawn(async move {
                    let mut received = 0_u64;
                    while let Ok(datagram) = connection.read_datagram().await {
                        received += datagram.len() as u64;
                    }
                    received
                })
            };
            let readers = [reading(&device), reading(&peer)];
            for (n, size) in sizes.iter().enumerate() {
                let from = if n % 2 == 0 { &peer } else { &device };
                // The relay may have closed by now.
                let _ = from.connection().send_datagram(vec![n as u8; *size].into());
            }
            let total: usize = sizes.iter().sum();
            let ended = total as u64 > quota;
            if ended {
                assert_eq!(close_code(device.connection()).await, CloseCode::QuotaExceeded);
            } else {
                // All of it fits, so all of it is charged; then this side leaves.
                soon(async {
                    let probe = || async { harness.join(&pair, Role::Device).await.allocated.bytes_used };
                    while probe().await < total as u64 {}
                })
                .await;
                device.connection().close(VarInt::from_u32(0), b"");
                peer.connection().close(VarInt::from_u32(0), b"");
            }
            let [device, peer] = readers;
            (device.await.unwrap() + peer.await.unwrap(), ended)
        });
        prop_assert!(received <= quota, "{} of {}", received, quota);
        if ended {
            let again = block(runtime, async { harness.connect().await.join(&pair, Role::Peer).await.err() });
            prop_assert_eq!(again.map(|(code, _)| code), Some(CloseCode::QuotaExceeded));
        }
        Ok(())
    });
}

#[test]
fn property_4_nothing_lives_past_its_tokens_expiry() {
    let harness_relay = RelayId([5; 16]);
    let admission = Admission {
        self_certified: Some(Tier::default()),
        max_token_lifetime: Duration::from_secs(1000),
        ..Admission::default()
    };
    let device = SigningKey::from_bytes(&[1; 32]);
    let peer = SigningKey::from_bytes(&[2; 32]);
    hold((0_u64..5000, 0_u64..5000, vec(0_u64..3000, 0..6)), |_, (now, expires_at_unix, steps)| {
        let fields = TokenFields {
            relay_id: harness_relay,
            allocation_id: AllocationId([3; 16]),
            device_id: DeviceId(device.verifying_key().to_bytes()),
            peer_id: PeerId(peer.verifying_key().to_bytes()),
            expires_at_unix,
            bandwidth_bytes_per_sec: 0,
            quota_bytes: 0,
        };
        let token = fields.sign(&device).to_bytes();
        let verified = VerifiedTokens::new(2);
        let admitted = admission.admit(&harness_relay, &token, &[3; 16], now, &verified);
        prop_assert_eq!(admitted.is_ok(), expires_at_unix > now && expires_at_unix - now <= 1000);
        let Ok(claims) = admitted else { return Ok(()) };
        let at = |unix| Now { mono: Duration::from_secs(unix), unix: Duration::from_secs(unix) };
        let mut table = Table::new(rules());
        let mut effects = Vec::new();
        let joined = table.join(
            at(now),
            crate::table::ConnId(1),
            Role::Device,
            &claims,
            &Tier::default(),
            &mut effects,
        );
        prop_assert!(joined.is_ok());
        let mut unix = now;
        for step in steps {
            unix += step;
            table.advance(at(unix), &mut effects);
            prop_assert!(table.is_empty() || expires_at_unix > unix, "alive at {}", unix);
        }
        Ok(())
    });
}

#[test]
fn property_5_what_arrives_is_what_was_sent() {
    let setup = Runtime::new().unwrap();
    let harness = setup.block_on(async { Harness::start() });
    let pair = harness.pair();
    let (device, peer) = setup.block_on(harness.joined_pair(&pair));
    let payloads =
        (vec(any::<u8>(), 0..1100), vec(vec(any::<u8>(), 1..5000), 0..8), any::<bool>(), any::<bool>());
    hold(payloads, |runtime, (datagram, chunks, from_device, bidirectional)| {
        let (here, there) = if from_device { (&device, &peer) } else { (&peer, &device) };
        block(runtime, async {
            here.send_datagram(datagram.clone());
            prop_assert_eq!(&there.datagram().await[..], &datagram[..]);
            let sending = async {
                let mut send = if bidirectional {
                    here.connection().open_bi().await.unwrap().0
                } else {
                    here.connection().open_uni().await.unwrap()
                };
                for chunk in &chunks {
                    send.write_all(chunk).await.unwrap();
                }
                send.finish().unwrap();
            };
            let receiving = async {
                let mut recv = if bidirectional {
                    there.connection().accept_bi().await.unwrap().1
                } else {
                    there.connection().accept_uni().await.unwrap()
                };
                recv.read_to_end(1 << 20).await.unwrap()
            };
            let ((), received) = tokio::join!(sending, receiving);
            prop_assert_eq!(received, chunks.concat());
            Ok(())
        })
    });
}

#[test]
fn property_6_one_allocations_abuse_reaches_no_other() {
    #[derive(Debug, Clone)]
    enum Abuse {
        Bytes(Vec<u8>),
        AfterHello(Vec<u8>),
        Twice,
        Prove,
        Refresh(Vec<u8>),
        Datagrams(u8),
        StreamsThatEndBadly(u8),
        Vanish,
        Release,
    }
    let abuses = prop_oneof![
        vec(any::<u8>(), 4..60).prop_map(Abuse::Bytes),
        vec(any::<u8>(), 4..60).prop_map(Abuse::AfterHello),
        Just(Abuse::Twice),
        Just(Abuse::Prove),
        vec(any::<u8>(), 0..200).prop_map(Abuse::Refresh),
        any::<u8>().prop_map(Abuse::Datagrams),
        // As many as it may open while it has no peer.
        (1_u8..=12).prop_map(Abuse::StreamsThatEndBadly),
        Just(Abuse::Vanish),
        Just(Abuse::Release),
    ];
    let setup = Runtime::new().unwrap();
    let harness = setup.block_on(async { Harness::start() });
    let (device, peer) = setup.block_on(harness.joined_pair(&harness.pair()));
    hold((abuses, any::<u64>()), |runtime, (abuse, canary)| {
        block(runtime, async {
            let pair = harness.pair();
            if let Abuse::Bytes(bytes) = &abuse {
                let raw = harness.connect().await;
                raw.begin(bytes).await.connection.close(VarInt::from_u32(1), b"");
            } else {
                let raw = harness.connect().await;
                let hello = ClientMessage::Hello(raw.hello(&pair, Role::Device));
                let mut bad = raw.join(&pair, Role::Device).await.unwrap();
                match &abuse {
                    Abuse::Bytes(_) => {}
                    Abuse::AfterHello(bytes) => bad.control.send.write_all(bytes).await.unwrap(),
                    Abuse::Twice => bad.control.say(&hello).await,
                    Abuse::Prove => {
                        bad.control.say(&ClientMessage::Prove(Prove { proof: Bytes::new() })).await;
                    }
                    Abuse::Refresh(token) => {
                        let refresh = Refresh { token: token.clone().into() };
                        bad.control.say(&ClientMessage::Refresh(refresh)).await;
                    }
                    Abuse::Datagrams(count) => {
                        for n in 0..*count {
                            bad.send_datagram(vec![n; 900]);
                        }
                    }
                    Abuse::StreamsThatEndBadly(count) => {
                        for n in 0..*count {
                            let mut send = bad.connection().open_uni().await.unwrap();
                            send.write_all(&[n; 100]).await.unwrap();
                            send.reset(VarInt::from_u32(n.into())).unwrap();
                        }
                    }
                    Abuse::Vanish => bad.connection().close(VarInt::from_u32(0), b""),
                    Abuse::Release => bad.control.say(&ClientMessage::Release).await,
                }
            }
            let canary = canary.to_le_bytes();
            device.send_datagram(canary.to_vec());
            prop_assert_eq!(&peer.datagram().await[..], &canary[..], "another's, or none");
            let mut send = peer.connection().open_uni().await.unwrap();
            send.write_all(&canary).await.unwrap();
            send.finish().unwrap();
            let mut recv = device.connection().accept_uni().await.unwrap();
            prop_assert_eq!(recv.read_to_end(100).await.unwrap(), canary);
            Ok(())
        })
    });
    assert_eq!(harness.metric("zrc_relay_session_panics_total"), 0);
}
