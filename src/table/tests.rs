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
    pair_timeout: Duration::from_secs(120),
};

/// The moment so many seconds after both clocks began to count for these tests.
fn at(secs: u64) -> Now {
    Now { mono: Duration::from_secs(secs), unix: Duration::from_secs(UNIX + secs) }
}

fn tier() -> Tier {
    Tier {
        limits: Limits {
            rate_bytes_per_sec: Some(1_000_000),
            rate_packets_per_sec: Some(1_000),
            quota_bytes: Some(10_000),
        },
        allocations_per_device: Some(3),
    }
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
        device_key: key,
        peer_key: key,
        token_hash: TokenHash::of(format!("{device} {allocation} {until_secs}").as_bytes()),
    }
}

/// A table with its effects, which each step must account for.
struct Bench {
    table: Table,
    effects: Vec<Effect>,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        Self { table: Table::new(rules), effects: Vec::new() }
    }

    fn join(&mut self, secs: u64, conn: u64, role: Role, claims: &Claims) -> Result<Joined, Refusal> {
        self.table.join(at(secs), ConnId(conn), role, claims, &tier(), &mut self.effects)
    }

    fn expect(&mut self, effects: &[Effect], deadline: Option<u64>) {
        assert_eq!(self.effects, effects);
        self.effects.clear();
        let _ = deadline;
    }
}

fn linked(conn: u64, to: Option<u64>) -> Effect {
    Effect::Link { conn: ConnId(conn), to: to.map(ConnId) }
}

#[test]
fn two_sides_meet_and_are_linked_both_ways() {
    let mut bench = Bench::new(RULES);
    let claims = token(1, 1, 500);
    let first = bench.join(0, 1, Role::Device, &claims).unwrap();
    assert!(first.created && !first.peer_present);
    bench.expect(&[], Some(120));
    let second = bench.join(5, 2, Role::Peer, &claims).unwrap();
    assert!(!second.created && second.peer_present);
    assert!(Arc::ptr_eq(&first.meter, &second.meter));
    bench.expect(&[linked(2, Some(1)), linked(1, Some(2))], Some(500));
}
