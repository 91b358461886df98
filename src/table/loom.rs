//! The meter under every order in which two threads may run: `tests/run.sh loom`.
//!
//! Each model makes a few charges that together touch all of the meter's words. Loom runs it again for each order of
//! their atomic steps, and for each value that a load may see by the memory model.

use loom::{model::Builder, sync::Arc, thread};

use super::{Denied, Limits, Meter};
use crate::wire::Role;

/// Orders in which a thread is interrupted more often than that are left out: there are too many, and what goes wrong
/// goes wrong with few.
const PREEMPTIONS: usize = 2;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn explore(limits: Limits, model: impl Fn(&Arc<Meter>) + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || model(&Arc::new(Meter::new(limits, 0))));
}

/// What this thread and another one come to.
fn both<A, B: 'static>(
    meter: &Arc<Meter>,
    here: impl FnOnce(&Meter) -> A,
    there: impl FnOnce(&Meter) -> B + 'static,
) -> (A, B) {
    let other = thread::spawn({
        let meter = meter.clone();
        move || there(&meter)
    });
    (here(meter), other.join().unwrap())
}

fn total(meter: &Meter) -> (u64, u64) {
    let [device, peer] = Role::BOTH.map(|role| meter.counts(role));
    (device.bytes + peer.bytes, device.packets + peer.packets)
}

#[test]
fn a_quota_is_never_overshot() {
    let quota_bytes = MIB as u64 + 300;
    explore(Limits { quota_bytes: Some(quota_bytes), ..Limits::default() }, move |meter| {
        let send = |from, bytes: usize| {
            move |meter: &Meter| meter.charge_datagram(0, from, bytes).map_or(0, |()| bytes as u64)
        };
        // With what the first one charges in advance, any two of them are too much.
        assert_eq!(send(Role::Device, 200)(meter), 200);
        let (here, there) = both(meter, send(Role::Device, MIB), send(Role::Peer, MIB));
        assert!(here == 0 || there == 0);
        assert_eq!(meter.bytes_used(), 200 + here + there);
        assert_eq!(meter.counts(Role::Device).bytes, 200 + here);
    });
}

/// An allocation ends when its quota is used up, so nobody may believe that while some of it only lies elsewhere.
#[test]
fn a_quota_is_not_believed_to_be_used_up_before_it_is() {
    let quota = MIB + 80 * KIB;
    explore(Limits { quota_bytes: Some(quota as u64), ..Limits::default() }, move |meter| {
        let (datagram, stream) = both(
            meter,
            // Enough is left after this one for a charge in advance.
            |meter| meter.charge_datagram(0, Role::Device, KIB),
            // And this one needs all the rest.
            move |meter| meter.charge_datagram(0, Role::Peer, quota - KIB),
        );
        assert_ne!(datagram, Err(Denied::Quota));
        assert_ne!(stream, Err(Denied::Quota));
        let granted = meter.charge_stream(0, Role::Device, 2 * MIB).unwrap_or(0) as u64;
        assert_eq!(meter.bytes_used(), quota as u64, "{granted}");
    });
}

#[test]
fn what_is_refunded_is_there_again() {
    explore(Limits { rate_bytes_per_sec: Some(100_000_000), ..Limits::default() }, |meter| {
        let (kept, ()) = both(
            meter,
            |meter| meter.charge_datagram(1, Role::Device, 1000),
            |meter| {
                if meter.charge_datagram(1, Role::Peer, 500).is_ok() {
                    meter.refund_datagram(Role::Peer, 500);
                }
            },
        );
        assert_eq!(kept, Ok(()));
        assert_eq!(total(meter), (1000, 1));
        assert_eq!(meter.bytes_used(), 1000);
        assert_eq!(meter.counts(Role::Peer).bytes, 0);
    });
}

#[test]
fn a_burst_passes_once() {
    let limits = Limits { rate_bytes_per_sec: Some(1), rate_packets_per_sec: Some(1), ..Limits::default() };
    explore(limits, |meter| {
        let send = |from| move |meter: &Meter| meter.charge_datagrams(0, from, 9, 9 * KIB).is_ok();
        let (here, there) = both(meter, send(Role::Device), send(Role::Peer));
        // One of them may be held back by a charge of the other's that is rolled back.
        assert!(!(here && there), "18 packets of a burst of 16");
        assert_eq!(total(meter).1, if here || there { 9 } else { 0 });
        let rest = if here || there { 7 } else { 16 };
        assert!(meter.charge_datagrams(0, Role::Device, rest + 1, KIB).is_err());
        assert!(meter.charge_datagrams(0, Role::Device, rest, KIB).is_ok());
    });
}

/// What was charged in advance under the old limits does not outlive them.
#[test]
fn nothing_is_left_of_an_advance_under_other_limits() {
    explore(Limits::default(), |meter| {
        let lower = Limits { rate_bytes_per_sec: Some(100), ..Limits::default() };
        let (charged, ()) = both(
            meter,
            |meter| meter.charge_datagram(0, Role::Device, 1300),
            move |meter| meter.set_limits(lower),
        );
        assert_eq!(charged, Ok(()));
        assert_eq!(total(meter), (1300, 1));
        let passed = (0..3).filter(|_| meter.charge_datagram(0, Role::Peer, 16 * KIB).is_ok()).count();
        assert!(passed <= 1, "{passed} bursts");
    });
}
