//! Inputs, the exact effects they have, and the next deadline.

use std::time::Duration;

use ed25519_dalek::SigningKey;

use super::*;
use crate::wire::{AllocationId, DeviceId, Identity, PeerId, PublicKey, Role, Signer, TokenHash};

/// The wall clock when the monotonic one stands at 0.
const UNIX: u64 = 1_000_000;

const RULES: Rules = Rules {
    max_allocations: 10,
    max_ledger: 20,
    connections_per_role: 2,
    allocation_timeout: Duration::from_secs(1000),
    idle_timeout: Duration::from_secs(30),
    pair_timeout: Duration::from_secs(50),
};

const LIMITS: Limits = Limits {
    rate_bytes_per_sec: Some(1_000_000),
    rate_packets_per_sec: Some(1_000),
    quota_bytes: Some(10_000),
    weight: 1,
};

const TIER: Tier = Tier { limits: LIMITS, allocations_per_device: Some(3), max_token_lifetime: None };

/// The moment so many seconds after both clocks began to count for these tests.
fn at(secs: u64) -> Now {
    Now { mono: Duration::from_secs(secs), unix: Duration::from_secs(UNIX + secs) }
}

/// A token of device `device` for allocation `allocation`, good until the given second of these tests.
fn token(device: u8, allocation: u8, until_secs: u64) -> Claims {
    let key = PublicKey::from_bytes(SigningKey::from_bytes(&[1; 32]).verifying_key().as_bytes()).unwrap();
    Claims {
        identity: Identity {
            signer: Signer::Device,
            device_id: DeviceId([device; 32]),
            peer_id: PeerId([2; 32]),
            allocation_id: AllocationId([allocation; 16]),
        },
        expires_at_unix: UNIX + until_secs,
        bandwidth_bytes_per_sec: None,
        quota_bytes: None,
        tier: None,
        signed_by: key,
        device_key: key,
        peer_key: key,
        token_hash: TokenHash::of(format!("{device} {allocation} {until_secs}").as_bytes()),
    }
}

/// A table whose every effect must be accounted for.
struct Bench {
    table: Table,
    now: Now,
    effects: Vec<Effect>,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        Self { table: Table::new(rules), now: at(0), effects: Vec::new() }
    }

    /// With a limit of all together that is not there yet.
    fn sharing(rules: Rules) -> Self {
        let table = Table::sharing(rules, Some(Arc::new(fair::Pool::new(None))));
        Self { table, ..Self::new(rules) }
    }

    fn join(&mut self, secs: u64, conn: u64, role: Role, claims: &Claims) -> Result<Joined, Refusal> {
        self.now = at(secs);
        self.table.join(self.now, ConnId(conn), role, claims, &TIER, &mut self.effects)
    }

    /// Joins and returns the meter; the effects are not of interest.
    fn joined(&mut self, secs: u64, conn: u64, role: Role, claims: &Claims) -> Arc<Meter> {
        let joined = self.join(secs, conn, role, claims).unwrap();
        self.effects.clear();
        joined.meter
    }

    /// Device 1 and peer 2 of the token, both at that second.
    fn pair(&mut self, secs: u64, claims: &Claims) -> Arc<Meter> {
        self.joined(secs, 1, Role::Device, claims);
        self.joined(secs, 2, Role::Peer, claims)
    }

    fn refresh(&mut self, secs: u64, conn: u64, claims: &Claims) -> Result<(), Refusal> {
        self.now = at(secs);
        self.table.refresh(self.now, ConnId(conn), claims, &TIER, &mut self.effects)
    }

    fn leave(&mut self, secs: u64, conn: u64) {
        self.now = at(secs);
        self.table.leave(self.now, ConnId(conn), &mut self.effects);
    }

    fn release(&mut self, secs: u64, conn: u64) {
        self.now = at(secs);
        self.table.release(self.now, ConnId(conn), &mut self.effects);
    }

    fn advance(&mut self, secs: u64) {
        self.now = at(secs);
        self.table.advance(self.now, &mut self.effects);
    }

    /// These effects since the last look, and then nothing before that second.
    fn expect(&mut self, effects: &[Effect], deadline_secs: Option<u64>) {
        assert_eq!(self.effects, effects);
        self.effects.clear();
        assert_eq!(self.table.deadline(self.now), deadline_secs.map(Duration::from_secs));
        self.table.assert_consistent();
    }

    /// The end of the token's allocation and of these connections, and then nothing before that second.
    fn expect_end(&mut self, conns: &[u64], code: CloseCode, claims: &Claims, lifetime_secs: u64, used: u64) {
        let handle = claims.identity.handle();
        let lifetime = Duration::from_secs(lifetime_secs);
        let mut effects: Vec<Effect> = conns.iter().map(|conn| closed(*conn, code)).collect();
        // Other tests say which limits are in force.
        let quota_bytes = match self.effects.last() {
            Some(Effect::Ended(ended)) => ended.quota_bytes,
            _ => None,
        };
        effects.push(Effect::Ended(Ended { handle, code, lifetime, bytes_used: used, quota_bytes }));
        assert_eq!(self.effects, effects);
        self.effects.clear();
        self.table.assert_consistent();
        assert!(self.table.summary(handle).is_none());
    }
}

fn linked(conn: u64, to: Option<u64>) -> Effect {
    Effect::Link { conn: ConnId(conn), to: to.map(ConnId) }
}

fn closed(conn: u64, code: CloseCode) -> Effect {
    let message = match code {
        CloseCode::Expired => "the allocation's time is over; come back with a token that expires later",
        CloseCode::QuotaExceeded => "the quota is used up; mint a token for a new allocation",
        CloseCode::PairTimeout => "the other side never came; come back when it does",
        CloseCode::PeerGone => "the other side left and did not come back in time",
        CloseCode::Released => "one side released the allocation; mint a token for a new one",
        CloseCode::Killed => "an administrator ended the allocation; mint a token for a new one: abuse",
        CloseCode::Replaced => "newer connections of this side took this one's place",
        CloseCode::Draining => "the relay stops",
        other => panic!("the table does not close with {other}"),
    };
    Effect::Close { conn: ConnId(conn), code, message: message.into() }
}

fn refreshed(conn: u64, until_secs: u64, limits: Limits, bytes_used: u64) -> Effect {
    let burst_bytes = limits.rate_bytes_per_sec.map(|rate| rate / 10);
    let grant = Grant { expires_at_unix: UNIX + until_secs, limits, burst_bytes, bytes_used };
    Effect::Refreshed { conn: ConnId(conn), grant }
}

// Coming and going.

#[test]
fn two_sides_meet_and_are_linked_both_ways() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    let first = bench.join(0, 1, Role::Device, &claims).unwrap();
    assert!(first.created && !first.peer_present);
    assert_eq!(first.handle, claims.identity.handle());
    let grant =
        Grant { expires_at_unix: UNIX + 55, limits: LIMITS, burst_bytes: Some(100_000), bytes_used: 0 };
    assert_eq!(first.grant, grant);
    bench.expect(&[], Some(50));
    let second = bench.join(5, 2, Role::Peer, &claims).unwrap();
    assert!(!second.created && second.peer_present);
    assert!(Arc::ptr_eq(&first.meter, &second.meter));
    assert_eq!((second.handle, second.grant), (first.handle, grant));
    bench.expect(&[linked(2, Some(1)), linked(1, Some(2))], Some(55));
    assert_eq!(bench.table.len(), 1);
    assert_eq!(bench.table.connections(), 2);
    assert_eq!(bench.table.remembered(), 1);
    assert!(!bench.table.is_empty());
}

#[test]
fn either_side_may_be_first() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    assert!(bench.join(0, 1, Role::Peer, &claims).unwrap().created);
    bench.expect(&[], Some(50));
    assert!(bench.join(5, 2, Role::Device, &claims).unwrap().peer_present);
    bench.expect(&[linked(2, Some(1)), linked(1, Some(2))], Some(55));
    bench.leave(6, 2);
    bench.expect(&[linked(1, None)], Some(36));
}

#[test]
fn a_side_does_not_pair_with_itself() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.join(0, 1, Role::Device, &claims).unwrap();
    let again = bench.join(1, 2, Role::Device, &claims).unwrap();
    assert!(!again.created && !again.peer_present);
    bench.expect(&[], Some(50));
    bench.advance(50);
    bench.expect_end(&[1, 2], CloseCode::PairTimeout, &claims, 50, 0);
}

#[test]
fn allocations_are_told_apart_by_all_of_their_identity() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.joined(0, 1, Role::Device, &claims);
    let mut others = vec![claims.clone(), claims.clone(), claims.clone(), claims];
    others[0].identity.signer = Signer::Issuer("backend".into());
    others[1].identity.device_id = DeviceId([9; 32]);
    others[2].identity.peer_id = PeerId([9; 32]);
    others[3].identity.allocation_id = AllocationId([9; 16]);
    for (conn, other) in (2..).zip(&others) {
        let joined = bench.join(0, conn, Role::Peer, other).unwrap();
        assert!(joined.created && !joined.peer_present);
        bench.expect(&[], Some(50));
        assert_eq!(bench.refresh(0, 1, other), Err(Refusal::OtherAllocation));
    }
    assert_eq!(bench.table.len(), 5);
}

#[test]
fn the_newest_connection_of_a_side_carries_the_traffic() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.pair(0, &claims);
    bench.join(1, 3, Role::Device, &claims).unwrap();
    bench.expect(&[linked(3, Some(2)), linked(2, Some(3))], Some(55));
    bench.join(2, 4, Role::Peer, &claims).unwrap();
    bench.expect(&[linked(4, Some(3)), linked(1, Some(4)), linked(3, Some(4))], Some(55));
    bench.leave(3, 2);
    bench.expect(&[], Some(55));
    bench.leave(3, 3);
    bench.expect(&[linked(4, Some(1))], Some(55));
    bench.leave(4, 1);
    bench.expect(&[linked(4, None)], Some(34));
    bench.join(5, 5, Role::Device, &claims).unwrap();
    bench.expect(&[linked(5, Some(4)), linked(4, Some(5))], Some(55));
}

#[test]
fn one_connection_too_many_replaces_the_oldest_of_its_side() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.pair(0, &claims);
    bench.joined(1, 3, Role::Device, &claims);
    bench.join(2, 4, Role::Device, &claims).unwrap();
    bench.expect(&[linked(4, Some(2)), linked(2, Some(4)), closed(1, CloseCode::Replaced)], Some(55));
    bench.leave(2, 1);
    bench.expect(&[], Some(55));
    assert_eq!(bench.table.summary(claims.identity.handle()).unwrap().connections, [2, 1]);
    assert_eq!(bench.table.connections(), 3);
}

#[test]
fn at_least_one_connection_a_side_is_allowed() {
    for connections_per_role in [0, 1] {
        let mut bench = Bench::new(Rules { connections_per_role, ..RULES });
        let claims = token(1, 1, 55);
        bench.joined(0, 1, Role::Device, &claims);
        bench.join(0, 2, Role::Device, &claims).unwrap();
        bench.expect(&[closed(1, CloseCode::Replaced)], Some(50));
    }
}

#[test]
fn leaving_twice_or_unknown_does_nothing() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.pair(0, &claims);
    bench.leave(0, 99);
    bench.expect(&[], Some(55));
    bench.leave(1, 1);
    bench.expect(&[linked(2, None)], Some(31));
    bench.leave(9, 1);
    bench.expect(&[], Some(31));
    bench.release(9, 1);
    bench.table.quota_exceeded(at(9), ConnId(1), &mut bench.effects);
    bench.expect(&[], Some(31));
}

#[test]
fn a_connection_joins_once() {
    let mut bench = Bench::new(RULES);
    let (claims, other) = (token(1, 1, 55), token(1, 2, 55));
    bench.pair(0, &claims);
    for claims in [&claims, &other] {
        assert_eq!(bench.join(1, 1, Role::Device, claims).unwrap_err(), Refusal::AlreadyJoined);
        bench.expect(&[], Some(55));
    }
}

// Ends by time.

#[test]
fn nobody_to_pair_with() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.joined(3, 1, Role::Device, &claims);
    bench.advance(52);
    bench.expect(&[], Some(53));
    bench.advance(53);
    bench.expect_end(&[1], CloseCode::PairTimeout, &claims, 50, 0);
    bench.expect(&[], None);
    assert_eq!(bench.table.remembered(), 0, "nothing was used");
}

#[test]
fn a_side_that_waits_alone_and_leaves_has_until_the_first_of_both_timeouts() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 59);
    bench.joined(0, 1, Role::Device, &claims);
    bench.leave(10, 1);
    bench.expect(&[], Some(40));
    bench.join(39, 2, Role::Device, &claims).unwrap();
    bench.expect(&[], Some(50));
    bench.leave(45, 2);
    bench.expect(&[], Some(50));
    bench.advance(50);
    bench.expect_end(&[], CloseCode::PairTimeout, &claims, 50, 0);

    bench.joined(51, 3, Role::Device, &token(1, 1, 300));
    bench.leave(52, 3);
    bench.expect(&[], Some(82));
    bench.advance(82);
    bench.expect_end(&[], CloseCode::PeerGone, &claims, 31, 0);
}

#[test]
fn the_peer_comes_after_the_device_has_left() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 300);
    bench.joined(0, 1, Role::Device, &claims);
    bench.leave(25, 1);
    bench.expect(&[], Some(50));
    let joined = bench.join(26, 2, Role::Peer, &claims).unwrap();
    assert!(!joined.created && !joined.peer_present);
    bench.expect(&[], Some(55));
    bench.advance(55);
    bench.expect_end(&[2], CloseCode::PeerGone, &claims, 55, 0);
}

#[test]
fn a_side_that_left_may_return_in_time() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 300);
    bench.pair(0, &claims);
    bench.leave(1, 2);
    bench.expect(&[linked(1, None)], Some(31));
    bench.join(30, 3, Role::Peer, &claims).unwrap();
    bench.expect(&[linked(3, Some(1)), linked(1, Some(3))], Some(90));
    bench.leave(31, 3);
    bench.expect(&[linked(1, None)], Some(61));
    bench.advance(61);
    bench.expect_end(&[1], CloseCode::PeerGone, &claims, 61, 0);
}

#[test]
fn when_both_are_away_the_first_to_leave_is_waited_for() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 300);
    bench.pair(0, &claims);
    bench.leave(5, 1);
    bench.leave(15, 2);
    bench.expect(&[linked(2, None)], Some(35));
    bench.join(20, 3, Role::Device, &claims).unwrap();
    bench.expect(&[], Some(45));
    bench.leave(21, 3);
    bench.advance(44);
    bench.expect(&[], Some(45));
    bench.advance(45);
    bench.expect_end(&[], CloseCode::PeerGone, &claims, 45, 0);
}

#[test]
fn a_token_expires_in_its_second_and_not_before() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 40);
    bench.pair(0, &claims);
    let moment_before = Now { unix: at(40).unix - Duration::from_nanos(1), ..at(40) };
    bench.table.advance(moment_before, &mut bench.effects);
    assert_eq!(bench.effects, []);
    bench.advance(40);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    assert_eq!(bench.join(40, 3, Role::Device, &claims).unwrap_err(), Refusal::Expired);
    bench.expect(&[], None);
}

#[test]
fn no_allocation_lives_longer_than_the_timeout() {
    let rules = Rules { allocation_timeout: Duration::from_secs(35), ..RULES };
    let mut bench = Bench::new(rules);
    let claims = token(1, 1, 300);
    bench.pair(5, &claims);
    bench.expect(&[], Some(40));
    bench.refresh(10, 1, &token(1, 1, 400)).unwrap();
    bench.effects.clear();
    bench.advance(39);
    bench.expect(&[], Some(40));
    bench.advance(40);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 35, 0);
    assert!(bench.join(41, 3, Role::Device, &claims).unwrap().created);
}

#[test]
fn of_two_ends_at_one_moment_the_allocations_own_time_counts() {
    let claims = token(1, 1, 300);
    let mut bench = Bench::new(Rules { allocation_timeout: RULES.pair_timeout, ..RULES });
    bench.joined(0, 1, Role::Device, &claims);
    bench.advance(50);
    bench.expect_end(&[1], CloseCode::Expired, &claims, 50, 0);
    let mut bench = Bench::new(RULES);
    bench.pair(0, &token(1, 1, 40));
    bench.leave(10, 1);
    bench.effects.clear();
    bench.advance(40);
    bench.expect_end(&[2], CloseCode::Expired, &claims, 40, 0);
}

#[test]
fn every_input_first_does_what_is_due() {
    let claims = token(1, 1, 40);
    let newer = token(1, 1, 400);
    let paired = || {
        let mut bench = Bench::new(RULES);
        bench.pair(0, &claims);
        bench
    };
    let mut bench = paired();
    assert!(bench.join(40, 3, Role::Device, &newer).unwrap().created);
    let new_life = bench.table.summary(claims.identity.handle()).unwrap();
    assert_eq!((new_life.created, new_life.connections), (at(40), [1, 0]));
    bench.table.release(at(40), ConnId(3), &mut Vec::new());
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    assert_eq!(bench.refresh(40, 1, &newer), Err(Refusal::Gone));
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    bench.leave(40, 1);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    bench.release(40, 1);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    bench.table.quota_exceeded(at(40), ConnId(1), &mut bench.effects);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    assert!(!bench.table.kill(at(40), claims.identity.handle(), "abuse", &mut bench.effects));
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    bench.table.end_all(at(40), CloseCode::Draining, "the relay stops", &mut bench.effects);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
    let mut bench = paired();
    bench.table.set_rules(at(40), RULES, &mut bench.effects);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 0);
}

// Ends by someone's wish.

#[test]
fn final_ends_keep_the_identity_out_until_its_last_token_expires() {
    type End = fn(&mut Bench);
    let ends: [(CloseCode, End); 3] = [
        (CloseCode::Released, |bench| bench.release(1, 2)),
        (CloseCode::QuotaExceeded, |bench| {
            bench.table.quota_exceeded(at(1), ConnId(1), &mut bench.effects);
        }),
        (CloseCode::Killed, |bench| {
            let handle = token(1, 1, 0).identity.handle();
            assert!(bench.table.kill(at(1), handle, "abuse", &mut bench.effects));
        }),
    ];
    for (code, end) in ends {
        let mut bench = Bench::new(RULES);
        let claims = token(1, 1, 40);
        bench.pair(0, &claims);
        end(&mut bench);
        bench.expect_end(&[1, 2], code, &claims, 1, 0);
        bench.expect(&[], Some(40));
        assert_eq!((bench.table.len(), bench.table.remembered()), (0, 1));
        let refusal = bench.join(39, 3, Role::Device, &claims).unwrap_err();
        assert_eq!((refusal, refusal.close_code()), (Refusal::Ended(code), code));
        bench.expect(&[], Some(40));

        // A token that lives longer keeps it out for longer.
        let newer = token(1, 1, 45);
        assert_eq!(bench.join(39, 3, Role::Device, &newer).unwrap_err(), Refusal::Ended(code));
        assert_eq!(bench.join(39, 3, Role::Device, &claims).unwrap_err(), Refusal::Ended(code));
        bench.expect(&[], Some(45));
        assert_eq!(bench.join(44, 3, Role::Device, &newer).unwrap_err(), Refusal::Ended(code));
        bench.advance(45);
        bench.expect(&[], None);
        assert_eq!(bench.table.remembered(), 0);
        assert!(bench.join(45, 3, Role::Device, &token(1, 1, 60)).unwrap().created);
    }
}

#[test]
fn a_token_once_shown_for_it_lengthens_how_long_an_end_is_remembered() {
    type Show = fn(&mut Bench, &Claims);
    let shows: [Show; 3] = [
        |bench, newer| assert!(!bench.join(0, 3, Role::Device, newer).unwrap().created),
        |bench, newer| assert_eq!(bench.refresh(0, 9, newer), Err(Refusal::OtherAllocation)),
        |bench, newer| assert_eq!(bench.refresh(0, 1, newer), Ok(())),
    ];
    for show in shows {
        let mut bench = Bench::new(RULES);
        bench.pair(0, &token(1, 1, 40));
        bench.joined(0, 9, Role::Device, &token(9, 9, 300));
        show(&mut bench, &token(1, 1, 45));
        bench.release(1, 1);
        bench.effects.clear();
        bench.advance(44);
        assert_eq!(
            bench.join(44, 4, Role::Peer, &token(1, 1, 45)).unwrap_err(),
            Refusal::Ended(CloseCode::Released)
        );
    }
}

#[test]
fn nobody_is_killed_by_a_name_that_is_nobodys() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 40);
    bench.pair(0, &claims);
    let mut handle = claims.identity.handle();
    handle.0[15] ^= 1;
    assert!(!bench.table.kill(at(1), handle, "abuse", &mut bench.effects));
    bench.expect(&[], Some(40));
}

#[test]
fn a_reason_is_cut_to_what_a_close_frame_carries() {
    let ask = "an administrator ended the allocation; mint a token for a new one";
    for (reason, expected) in [
        (String::new(), ask.to_owned()),
        ("   ".to_owned(), ask.to_owned()),
        ("ü".repeat(1000), format!("{ask}: {}", "ü".repeat(200))),
    ] {
        let mut bench = Bench::new(RULES);
        let claims = token(1, 1, 40);
        bench.joined(0, 1, Role::Device, &claims);
        assert!(bench.table.kill(at(1), claims.identity.handle(), &reason, &mut bench.effects));
        let Effect::Close { message, .. } = &bench.effects[0] else { panic!("no close") };
        assert_eq!(**message, *expected);
    }
}

#[test]
fn draining_ends_everything_and_nothing_for_good() {
    let mut bench = Bench::new(RULES);
    let (one, two) = (token(1, 1, 40), token(2, 2, 45));
    bench.joined(0, 5, Role::Device, &two);
    bench.pair(0, &one);
    bench.joined(0, 3, Role::Device, &one);
    bench.now = at(2);
    bench.table.end_all(at(2), CloseCode::Draining, "the relay stops", &mut bench.effects);
    let ended = |claims: &Claims| {
        let lifetime = Duration::from_secs(2);
        Effect::Ended(Ended {
            handle: claims.identity.handle(),
            code: CloseCode::Draining,
            lifetime,
            bytes_used: 0,
            quota_bytes: LIMITS.quota_bytes,
        })
    };
    let close = |conn| closed(conn, CloseCode::Draining);
    bench.expect(&[close(5), ended(&two), close(1), close(3), close(2), ended(&one)], None);
    assert!(bench.table.is_empty());
    assert!(bench.join(3, 6, Role::Peer, &one).unwrap().created);
}

// Use and the ledger.

#[test]
fn use_survives_every_end_that_is_not_final() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    let meter = bench.pair(0, &claims);
    meter.charge_datagram(0, Role::Device, 700).unwrap();
    meter.charge_datagram(0, Role::Peer, 50).unwrap();
    bench.leave(1, 1);
    bench.effects.clear();
    bench.advance(31);
    bench.expect_end(&[2], CloseCode::PeerGone, &claims, 31, 750);
    bench.expect(&[], Some(55));
    assert_eq!(bench.table.remembered(), 1);
    // A session that has not heard of the end.
    meter.charge_datagram(0, Role::Device, 5).unwrap();
    let joined = bench.join(32, 3, Role::Device, &claims).unwrap();
    assert!(joined.created);
    assert_eq!(joined.grant.bytes_used, 755);
    assert_eq!(joined.meter.bytes_used(), 755);
    assert_eq!(bench.table.remembered(), 1);
    // It is live now: what was to be forgotten of its past is not a deadline any more.
    bench.refresh(32, 3, &token(1, 1, 400)).unwrap();
    bench.effects.clear();
    bench.expect(&[], Some(82));
    assert_eq!(bench.table.summary(claims.identity.handle()).unwrap().bytes_used, 755);
}

#[test]
fn a_second_life_has_the_limits_of_its_own_token() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 300);
    let meter = bench.pair(0, &claims);
    meter.charge_datagram(0, Role::Device, 700).unwrap();
    bench.table.end_all(at(1), CloseCode::Draining, "the relay stops", &mut bench.effects);
    let modest = Claims { quota_bytes: Some(800), ..token(1, 1, 200) };
    let joined = bench.join(2, 3, Role::Device, &modest).unwrap();
    assert_eq!(joined.grant.limits.quota_bytes, Some(800));
    assert_eq!(joined.meter.charge_datagram(0, Role::Device, 101), Err(Denied::Quota));
    assert_eq!(joined.meter.charge_datagram(0, Role::Device, 100), Ok(()));
}

#[test]
fn use_is_forgotten_with_the_last_token() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 40);
    bench.pair(0, &claims).charge_datagram(0, Role::Device, 700).unwrap();
    bench.table.end_all(at(1), CloseCode::Draining, "the relay stops", &mut bench.effects);
    bench.effects.clear();
    // A longer token that is refused for want of room keeps the memory alive all the same.
    bench.table.set_rules(at(1), Rules { max_allocations: 0, ..RULES }, &mut bench.effects);
    assert_eq!(bench.join(1, 3, Role::Device, &token(1, 1, 45)).unwrap_err(), Refusal::AllocationsFull);
    bench.table.set_rules(at(1), RULES, &mut bench.effects);
    bench.expect(&[], Some(45));
    bench.advance(44);
    assert_eq!(bench.table.remembered(), 1);
    bench.advance(45);
    bench.expect(&[], None);
    assert_eq!(bench.table.remembered(), 0);
    assert_eq!(bench.joined(45, 4, Role::Device, &token(1, 1, 60)).bytes_used(), 0);
}

#[test]
fn what_ends_with_its_last_token_leaves_nothing_behind() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 40);
    bench.pair(0, &claims).charge_datagram(0, Role::Device, 700).unwrap();
    bench.advance(40);
    bench.expect_end(&[1, 2], CloseCode::Expired, &claims, 40, 700);
    bench.expect(&[], None);
    assert_eq!(bench.table.remembered(), 0);
}

#[test]
fn an_expired_allocation_may_live_again_by_a_later_token() {
    let mut bench = Bench::new(RULES);
    let (claims, later) = (token(1, 1, 40), token(1, 1, 300));
    bench.pair(0, &claims).charge_datagram(0, Role::Device, 700).unwrap();
    let joined = bench.join(1, 3, Role::Device, &later).unwrap();
    assert_eq!(joined.grant.expires_at_unix, UNIX + 40, "a join changes nothing");
    bench.effects.clear();
    bench.advance(40);
    bench.expect_end(&[1, 3, 2], CloseCode::Expired, &claims, 40, 700);
    let joined = bench.join(41, 4, Role::Device, &later).unwrap();
    assert!(joined.created);
    assert_eq!((joined.grant.bytes_used, joined.grant.expires_at_unix), (700, UNIX + 300));
}

#[test]
fn r8_a_global_limit_holds_for_whom_it_finds_and_for_whom_comes() {
    let mut bench = Bench::sharing(RULES);
    // Nothing of its own holds it up, so it charges in advance.
    let free = Tier { limits: Limits::default(), ..TIER };
    let join = |bench: &mut Bench, conn, claims: &Claims| {
        let joined =
            bench.table.join(bench.now, ConnId(conn), Role::Device, claims, &free, &mut bench.effects);
        joined.unwrap().meter
    };
    let there = join(&mut bench, 1, &token(1, 1, 500));
    there.charge_datagram(1, Role::Device, 1000).unwrap();
    bench.table.set_global_limit(1, Some(1_000_000));
    let newcomer = join(&mut bench, 2, &token(2, 2, 500));
    // The burst of all together, and nothing that was charged before is left for anybody.
    assert_eq!(newcomer.charge_stream(1, Role::Device, 1_000_000), Ok(100_000));
    for meter in [&there, &newcomer] {
        assert!(matches!(
            meter.charge_datagram(1, Role::Device, 1000),
            Err(Denied::ByteRate(_) | Denied::GlobalRate(_))
        ));
    }
    bench.table.set_global_limit(1, None);
    for meter in [&there, &newcomer] {
        assert_eq!(meter.charge_stream(1, Role::Device, 5_000_000), Ok(5_000_000));
    }
    assert_eq!((there.bytes_used(), newcomer.bytes_used()), (5_001_000, 5_100_000));
}

#[test]
fn joining_changes_neither_limits_nor_expiry() {
    let mut bench = Bench::new(RULES);
    bench.joined(0, 1, Role::Device, &token(1, 1, 40));
    let greedy = Claims { bandwidth_bytes_per_sec: Some(5), quota_bytes: Some(5), ..token(1, 1, 300) };
    let joined = bench.join(0, 2, Role::Peer, &greedy).unwrap();
    assert_eq!((joined.grant.limits, joined.grant.expires_at_unix), (LIMITS, UNIX + 40));
    assert_eq!(joined.meter.limits(), LIMITS);
}

// Refresh.

#[test]
fn a_refresh_replaces_limits_and_expiry_and_tells_everybody() {
    let mut bench = Bench::new(RULES);
    bench.pair(0, &token(1, 1, 40)).charge_datagram(0, Role::Peer, 700).unwrap();
    bench.joined(0, 3, Role::Device, &token(1, 1, 40));
    let newer = Claims { bandwidth_bytes_per_sec: Some(500_000), quota_bytes: Some(900), ..token(1, 1, 55) };
    assert_eq!(bench.refresh(1, 2, &newer), Ok(()));
    let limits = Limits { rate_bytes_per_sec: Some(500_000), quota_bytes: Some(900), ..LIMITS };
    let told = [1, 3, 2].map(|conn| refreshed(conn, 55, limits, 700));
    bench.expect(&told, Some(55));
    let meter = bench.joined(1, 4, Role::Peer, &token(1, 1, 40));
    assert_eq!((meter.limits(), meter.bytes_used()), (limits, 700));
}

#[test]
fn the_token_in_force_is_answered_again_to_who_asks() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.pair(0, &claims);
    assert_eq!(bench.refresh(1, 2, &claims), Ok(()));
    bench.expect(&[refreshed(2, 55, LIMITS, 0)], Some(55));
    bench.refresh(1, 1, &token(1, 1, 58)).unwrap();
    bench.effects.clear();
    assert_eq!(bench.refresh(1, 1, &token(1, 1, 58)), Ok(()));
    bench.expect(&[refreshed(1, 58, LIMITS, 0)], Some(58));
    assert_eq!(bench.refresh(1, 1, &claims), Err(Refusal::NotLater), "in force no more");
}

#[test]
fn a_refresh_that_is_no_refresh_is_refused() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 40);
    bench.pair(0, &claims);
    let same_time = Claims { token_hash: TokenHash::of(b"another"), ..claims.clone() };
    for (conn, claims, refusal) in [
        (9, token(1, 1, 50), Refusal::Gone),
        (1, token(1, 1, 1), Refusal::Expired),
        (1, token(1, 2, 50), Refusal::OtherAllocation),
        (1, token(1, 1, 39), Refusal::NotLater),
        (1, same_time, Refusal::NotLater),
    ] {
        assert_eq!(bench.refresh(1, conn, &claims), Err(refusal));
        bench.expect(&[], Some(40));
    }
    assert_eq!(bench.table.summary(claims.identity.handle()).unwrap().expires_at_unix, UNIX + 40);
}

// Maximums.

#[test]
fn no_more_allocations_than_allowed() {
    let mut bench = Bench::new(Rules { max_allocations: 2, ..RULES });
    bench.joined(0, 1, Role::Device, &token(1, 1, 40));
    bench.joined(0, 2, Role::Device, &token(2, 2, 40));
    assert_eq!(bench.join(0, 3, Role::Device, &token(3, 3, 40)).unwrap_err(), Refusal::AllocationsFull);
    assert!(!bench.join(0, 4, Role::Peer, &token(1, 1, 40)).unwrap().created, "what lives may be joined");
    assert_eq!((bench.table.len(), bench.table.connections(), bench.table.remembered()), (2, 3, 2));
    bench.release(1, 4);
    assert!(bench.join(1, 5, Role::Device, &token(3, 3, 40)).unwrap().created);
}

#[test]
fn no_more_allocations_a_device_than_its_tier_allows() {
    let mut bench = Bench::new(RULES);
    for allocation in 1..=3 {
        bench.joined(0, allocation.into(), Role::Device, &token(1, allocation, 40));
    }
    let fourth = token(1, 4, 40);
    assert_eq!(bench.join(0, 4, Role::Peer, &fourth).unwrap_err(), Refusal::DeviceFull);
    assert!(!bench.join(0, 5, Role::Peer, &token(1, 1, 40)).unwrap().created);
    assert!(bench.join(0, 6, Role::Device, &token(2, 5, 40)).unwrap().created, "another device");
    let mut issued = token(1, 6, 40);
    issued.identity.signer = Signer::Issuer("backend".into());
    assert!(bench.join(0, 7, Role::Device, &issued).unwrap().created, "another signer's name for a device");
    let unlimited = Tier::default();
    let joined = bench.table.join(at(0), ConnId(8), Role::Device, &fourth, &unlimited, &mut bench.effects);
    assert!(joined.unwrap().created);
    for conn in [1, 2] {
        bench.release(1, conn);
    }
    bench.effects.clear();
    assert!(bench.join(1, 9, Role::Device, &token(1, 7, 40)).unwrap().created, "two of four have ended");
    assert_eq!(bench.join(1, 10, Role::Device, &token(1, 8, 40)).unwrap_err(), Refusal::DeviceFull);
}

#[test]
fn a_full_ledger_refuses_and_never_forgets() {
    let mut bench = Bench::new(Rules { max_ledger: 3, ..RULES });
    bench.pair(0, &token(1, 1, 40)).charge_datagram(0, Role::Device, 700).unwrap();
    bench.table.end_all(at(0), CloseCode::Draining, "the relay stops", &mut bench.effects);
    bench.joined(0, 3, Role::Device, &token(2, 2, 40));
    bench.release(0, 3);
    bench.joined(0, 4, Role::Device, &token(3, 3, 55));
    assert_eq!(bench.table.remembered(), 3, "one used, one tombstone, one live");
    assert_eq!(bench.join(1, 5, Role::Device, &token(4, 4, 40)).unwrap_err(), Refusal::LedgerFull);
    assert_eq!(
        bench.join(1, 5, Role::Device, &token(2, 2, 40)).unwrap_err(),
        Refusal::Ended(CloseCode::Released)
    );
    // Who is in the ledger needs no more room to come back, and always finds room to end.
    let joined = bench.join(1, 6, Role::Device, &token(1, 1, 40)).unwrap();
    assert!(joined.created && joined.grant.bytes_used == 700);
    bench.release(2, 6);
    assert_eq!(bench.table.remembered(), 3);
    bench.effects.clear();
    bench.advance(40);
    assert_eq!(bench.table.remembered(), 1);
    assert!(bench.join(40, 7, Role::Device, &token(4, 4, 60)).unwrap().created);
}

#[test]
fn what_never_lived_takes_no_room_in_the_ledger() {
    let mut bench = Bench::new(Rules { max_allocations: 0, ..RULES });
    assert_eq!(bench.join(0, 1, Role::Device, &token(1, 1, 40)).unwrap_err(), Refusal::AllocationsFull);
    assert_eq!(bench.table.remembered(), 0);
    bench.expect(&[], None);
}

#[test]
fn refusals_come_in_order() {
    let no_room = Rules { max_allocations: 1, max_ledger: 1, ..RULES };
    let tier = Tier { allocations_per_device: Some(1), ..TIER };
    let mut bench = Bench::new(no_room);
    bench.joined(0, 1, Role::Device, &token(1, 1, 40));
    let mut refused = |rules: Rules, conn: u64, claims: &Claims| {
        bench.table.set_rules(at(1), rules, &mut bench.effects);
        bench.table.join(at(1), ConnId(conn), Role::Device, claims, &tier, &mut bench.effects).unwrap_err()
    };
    assert_eq!(refused(no_room, 1, &token(1, 2, 1)), Refusal::AlreadyJoined);
    assert_eq!(refused(no_room, 2, &token(1, 1, 1)), Refusal::Expired);
    assert_eq!(refused(no_room, 2, &token(1, 2, 40)), Refusal::AllocationsFull);
    let more = Rules { max_allocations: 2, ..no_room };
    assert_eq!(refused(more, 2, &token(1, 2, 40)), Refusal::DeviceFull);
    assert_eq!(refused(more, 2, &token(2, 2, 40)), Refusal::LedgerFull);
}

#[test]
fn every_refusal_has_its_code() {
    for (refusal, code) in [
        (Refusal::AllocationsFull, CloseCode::Capacity),
        (Refusal::LedgerFull, CloseCode::Capacity),
        (Refusal::DeviceFull, CloseCode::DeviceLimit),
        (Refusal::Ended(CloseCode::Killed), CloseCode::Killed),
        (Refusal::OtherAllocation, CloseCode::AllocationMismatch),
        (Refusal::NotLater, CloseCode::TokenInvalid),
        (Refusal::Gone, CloseCode::Internal),
        (Refusal::Expired, CloseCode::TokenExpired),
        (Refusal::AlreadyJoined, CloseCode::ProtocolError),
    ] {
        assert_eq!(refusal.close_code(), code);
    }
}

#[test]
fn a_token_gets_what_it_asks_for_up_to_its_tier() {
    let granted = |asked: Option<u64>, cap: Option<u64>| {
        let claims = Claims { bandwidth_bytes_per_sec: asked, quota_bytes: asked, ..token(1, 1, 40) };
        let limits =
            Limits { rate_bytes_per_sec: cap, rate_packets_per_sec: Some(77), quota_bytes: cap, weight: 3 };
        let granted = Limits::granted(&claims, &Tier { limits, ..Tier::default() });
        assert_eq!(granted.rate_bytes_per_sec, granted.quota_bytes);
        assert_eq!((granted.rate_packets_per_sec, granted.weight), (Some(77), 3));
        granted.quota_bytes
    };
    assert_eq!(granted(None, None), None);
    assert_eq!(granted(None, Some(5)), Some(5));
    assert_eq!(granted(Some(7), None), Some(7));
    assert_eq!(granted(Some(7), Some(5)), Some(5));
    assert_eq!(granted(Some(3), Some(5)), Some(3));
}

// The clocks.

#[test]
fn an_empty_table_waits_for_nothing() {
    Bench::new(RULES).expect(&[], None);
}

#[test]
fn the_wall_clock_is_looked_at_within_a_minute() {
    let mut bench = Bench::new(Rules { pair_timeout: Duration::from_secs(500), ..RULES });
    bench.joined(0, 1, Role::Device, &token(1, 1, 300));
    bench.expect(&[], Some(60));
    bench.advance(240);
    bench.expect(&[], Some(300));
    let between =
        Now { mono: Duration::from_millis(250_750), unix: at(250).unix + Duration::from_millis(500) };
    assert_eq!(bench.table.deadline(between), Some(Duration::from_millis(300_250)));
    // Set forward: overdue at once. Set back: lives longer, by the clock that tokens go by.
    let forward = Now { unix: at(900).unix, ..at(250) };
    assert_eq!(bench.table.deadline(forward), Some(Duration::from_secs(250)));
    let back = Now { unix: at(10).unix, ..at(320) };
    bench.table.advance(back, &mut bench.effects);
    assert_eq!(bench.effects, []);
    assert_eq!(bench.table.deadline(back), Some(Duration::from_secs(380)));
}

#[test]
fn tokens_and_timeouts_without_end_overflow_nothing() {
    let forever = Duration::MAX;
    let mut bench = Bench::new(Rules {
        allocation_timeout: forever,
        idle_timeout: forever,
        pair_timeout: forever,
        ..RULES
    });
    let claims = Claims { expires_at_unix: u64::MAX, ..token(1, 1, 0) };
    bench.joined(5, 1, Role::Device, &claims);
    bench.leave(6, 1);
    bench.expect(&[], Some(66));
    let late = Now { mono: Duration::MAX, unix: Duration::ZERO };
    assert_eq!(bench.table.deadline(late), Some(Duration::MAX));
}

#[test]
fn a_reading_of_the_clock_that_is_a_little_old_does_no_harm() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 55);
    bench.joined(20, 1, Role::Device, &claims);
    bench.joined(19, 2, Role::Peer, &claims);
    bench.release(18, 1);
    bench.expect_end(&[1, 2], CloseCode::Released, &claims, 0, 0);
}

#[test]
fn other_rules_hold_for_what_lives_already() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 300);
    bench.joined(0, 1, Role::Device, &claims);
    bench.now = at(10);
    bench.table.set_rules(
        at(10),
        Rules { pair_timeout: Duration::from_secs(20), ..RULES },
        &mut bench.effects,
    );
    bench.expect(&[], Some(20));
    assert_eq!(bench.table.rules().pair_timeout, Duration::from_secs(20));
    bench.table.set_rules(
        at(10),
        Rules { pair_timeout: Duration::from_secs(9), ..RULES },
        &mut bench.effects,
    );
    bench.expect_end(&[1], CloseCode::PairTimeout, &claims, 10, 0);
}

#[test]
fn fewer_connections_a_side_hold_from_the_next_join_on() {
    let mut bench = Bench::new(Rules { connections_per_role: 4, ..RULES });
    let claims = token(1, 1, 300);
    for conn in 1..=4 {
        bench.joined(0, conn, Role::Device, &claims);
    }
    bench.table.set_rules(at(0), Rules { connections_per_role: 2, ..RULES }, &mut bench.effects);
    bench.join(0, 5, Role::Device, &claims).unwrap();
    let replaced = [1, 2, 3].map(|conn| closed(conn, CloseCode::Replaced));
    bench.expect(&replaced, Some(50));
}

// What is shown.

#[test]
fn summaries_say_what_is_going_on() {
    let mut bench = Bench::new(RULES);
    let claims = [token(1, 1, 300), token(2, 2, 310), token(3, 3, 320), token(4, 4, 330)];
    let stages = [Stage::Waiting, Stage::Paired, Stage::Interrupted, Stage::Deserted];
    for (number, claims) in (0..).zip(&claims) {
        bench.joined(number, 10 * number + 1, Role::Device, claims);
    }
    let meter = bench.joined(5, 12, Role::Peer, &claims[1]);
    meter.charge_datagram(5_000, Role::Device, 100).unwrap();
    meter.charge_datagram(6_000, Role::Device, 100).unwrap();
    meter.charge_stream(7_000, Role::Peer, 30).unwrap();
    bench.joined(5, 22, Role::Peer, &claims[2]);
    bench.leave(6, 21);
    bench.leave(6, 31);
    let summary = bench.table.summary(claims[1].identity.handle()).unwrap();
    let expected = Summary {
        handle: claims[1].identity.handle(),
        allocation_id: AllocationId([2; 16]),
        device_id: DeviceId([2; 32]),
        peer_id: claims[1].identity.peer_id,
        tier: None,
        stage: Stage::Paired,
        connections: [1, 1],
        counts: [Counts { bytes: 200, packets: 2 }, Counts { bytes: 30, packets: 0 }],
        bytes_used: 230,
        last_activity_nanos: 7_000,
        created: at(1),
        expires_at_unix: UNIX + 310,
        limits: LIMITS,
    };
    assert_eq!(summary, expected);
    for (claims, stage) in claims.iter().zip(stages) {
        assert_eq!(bench.table.summary(claims.identity.handle()).unwrap().stage, stage);
    }
    let all: Vec<Summary> = bench.table.summaries().collect();
    assert_eq!(all.len(), 4);
    assert!(all.is_sorted_by_key(|summary| summary.handle));
    let after: Vec<Summary> = bench.table.summaries_after(all[1].handle).collect();
    assert_eq!(after, all[2..]);
    bench.leave(7, 12);
    bench.leave(7, 11);
    assert_eq!(bench.table.summary(summary.handle).unwrap().stage, Stage::Deserted);
}

#[test]
fn r4_5_a_changed_tier_applies_to_what_is_live() {
    let mut bench = Bench::new(RULES);
    let meter = bench.pair(0, &token(1, 1, 100));
    let asks_little = Claims { quota_bytes: Some(10), ..token(1, 2, 100) };
    let little = bench.joined(0, 3, Role::Device, &asks_little);
    let before = bench.table.summaries().map(|summary| summary.limits).collect::<Vec<_>>();

    // The same again is nothing new.
    let judge = |tier: Tier| move |_: &Identity, _: &Basis| Verdict::Keep(tier);
    bench.table.reconsider(at(1), judge(TIER), &mut bench.effects);
    assert_eq!(bench.table.summaries().map(|summary| summary.limits).collect::<Vec<_>>(), before);
    assert_eq!(bench.effects, []);

    let quota = Limits { quota_bytes: Some(70), weight: 9, ..LIMITS };
    let tier = Tier { limits: quota, allocations_per_device: Some(0), max_token_lifetime: None };
    bench.table.reconsider(at(1), judge(tier), &mut bench.effects);
    assert_eq!(meter.limits(), quota);
    // What the token asks for stays the most it gets.
    assert_eq!(little.limits().quota_bytes, Some(10));
    let told: Vec<_> = bench
        .effects
        .drain(..)
        .map(|effect| match effect {
            Effect::Refreshed { conn, grant } => (conn.0, grant.limits.quota_bytes, grant.limits.weight),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [(1, Some(70), 9), (2, Some(70), 9), (3, Some(10), 9)]);
    assert_eq!(meter.charge_datagram(0, Role::Device, 71), Err(Denied::Quota));
    bench.table.assert_consistent();
}

#[test]
fn whoever_is_no_longer_welcome_is_ended_for_good() {
    let mut bench = Bench::new(RULES);
    bench.pair(0, &token(1, 1, 100));
    let named = Claims { tier: Some("gold".into()), ..token(2, 1, 100) };
    bench.joined(0, 3, Role::Device, &named);
    // The judge is shown whose it is, and what it rests on.
    let judge = |identity: &Identity, basis: &Basis| {
        assert_eq!(basis.tier.as_deref(), (identity.device_id.0[0] == 2).then_some("gold"));
        assert_eq!(basis.signed_by, *named.signed_by.as_bytes());
        assert!(!format!("{basis:?}").contains(&format!("{:?}", basis.device_key)));
        match identity.device_id.0[0] {
            1 => Verdict::End("device revoked"),
            _ => Verdict::Keep(TIER),
        }
    };
    bench.table.reconsider(at(1), judge, &mut bench.effects);
    let closed = |conn| Effect::Close {
        conn: ConnId(conn),
        code: CloseCode::Killed,
        message: "device revoked".into(),
    };
    assert_eq!(bench.effects[..2], [closed(1), closed(2)]);
    assert!(matches!(&bench.effects[2..], [Effect::Ended(ended)] if ended.code == CloseCode::Killed));
    bench.effects.clear();
    assert_eq!(bench.table.len(), 1);
    let again = bench.join(2, 4, Role::Device, &token(1, 1, 100));
    assert_eq!(again.unwrap_err(), Refusal::Ended(CloseCode::Killed));
    bench.table.assert_consistent();
}

/// What was refreshed rests on the newer token.
#[test]
fn a_refresh_is_what_is_judged() {
    let mut bench = Bench::new(RULES);
    bench.pair(0, &token(1, 1, 100));
    let newer = Claims { tier: Some("gold".into()), quota_bytes: Some(5), ..token(1, 1, 200) };
    bench.refresh(1, 2, &newer).unwrap();
    bench.effects.clear();
    let tier = Tier { limits: Limits::default(), ..TIER };
    let judge = |_: &Identity, basis: &Basis| {
        assert_eq!(basis.tier.as_deref(), Some("gold"));
        Verdict::Keep(tier)
    };
    bench.table.reconsider(at(1), judge, &mut bench.effects);
    assert_eq!(bench.table.summaries().next().unwrap().limits.quota_bytes, Some(5));
}
