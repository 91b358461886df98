//! Thousands of clients in virtual time, well behaved and hostile, against a plain model of what must hold.
//!
//! Every step does one thing at one moment, follows the effects as the relay would, and compares the table
//! with the model: who lives, who is linked to whom, what is refused and why, what ends and why, what is
//! remembered, and when it is due next. The seed is printed; `ZRC_SEED=<number>` runs the same steps again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ed25519_dalek::SigningKey;

use super::*;
use crate::wire::{AllocationId, DeviceId, Identity, PeerId, PublicKey, Role, Signer, TokenHash};

const STEPS: u64 = 12_000;
const IDENTITIES: usize = 1_500;
const DEVICES: u64 = 30;

/// By the names under which the simulation counts it.
#[rustfmt::skip]
const EVERYTHING: [&str; 34] = [
    "AllocationsFull", "DRAINING", "DeviceFull", "EXPIRED", "Ended(Killed)", "Ended(QuotaExceeded)",
    "Ended(Released)", "Expired", "KILLED", "LedgerFull", "PAIR_TIMEOUT", "PEER_GONE", "QUOTA_EXCEEDED",
    "RELEASED", "already joined", "charged late", "created", "drained", "first life", "joined", "left",
    "left before", "refreshed", "refreshed another", "refreshed to no later", "refreshed too late",
    "refreshed what is gone", "replaced", "rules changed", "second life", "sent", "throttled", "waited",
    "wall clock set",
];

const RULES: Rules = Rules {
    max_allocations: 60,
    max_ledger: 160,
    connections_per_role: 3,
    allocation_timeout: Duration::from_secs(400),
    idle_timeout: Duration::from_secs(30),
    pair_timeout: Duration::from_secs(60),
};

const TIERS: [Tier; 2] = [
    Tier {
        limits: Limits {
            rate_bytes_per_sec: Some(200_000),
            rate_packets_per_sec: Some(300),
            quota_bytes: Some(60_000),
            weight: 1,
        },
        allocations_per_device: Some(3),
        max_token_lifetime: None,
    },
    Tier {
        limits: Limits {
            rate_bytes_per_sec: None,
            rate_packets_per_sec: None,
            quota_bytes: Some(400_000),
            weight: 4,
        },
        allocations_per_device: None,
        max_token_lifetime: None,
    },
];

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be there to read when the simulation fails")]
fn nothing_breaks_in_a_long_life() {
    let seed = match std::env::var("ZRC_SEED") {
        Ok(text) => text.parse().expect("ZRC_SEED is a number"),
        Err(_) => {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        }
    };
    eprintln!("ZRC_SEED={seed}");
    let mut world = World::new(seed);
    // What is rare may take longer; what never comes is a fault of the table or of the simulation.
    for step in 0..4 * STEPS {
        if step >= STEPS && world.unseen().is_none() {
            break;
        }
        world.step();
    }
    eprintln!("{:?}", world.seen);
    assert_eq!(world.unseen(), None);
    world.wind_up();
}

/// The relay's side of things and the model.
struct World {
    dice: Dice,
    now: Now,
    table: Table,
    rules: Rules,
    /// The public part of every token.
    key: PublicKey,
    subjects: Vec<Subject>,
    /// Which subjects are live or remembered.
    known: BTreeSet<usize>,
    by_handle: BTreeMap<Handle, usize>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    next_token: u64,
    /// How often each thing happened: a simulation in which nothing happens proves nothing.
    seen: BTreeMap<String, u64>,
}

/// One identity, with all its tokens so far.
struct Subject {
    identity: Identity,
    handle: Handle,
    tokens: Vec<Claims>,
    latest_unix: u64,
    /// What the meter must say.
    used: u64,
    meter: Option<Arc<Meter>>,
    life: Life,
}

enum Life {
    Unknown,
    Live(Box<Live>),
    Used,
    Final(CloseCode),
}

struct Live {
    created: Duration,
    expires_at_unix: u64,
    token_hash: TokenHash,
    limits: Limits,
    sides: [Side; 2],
}

#[derive(Default)]
struct Side {
    came: bool,
    /// Oldest first.
    conns: Vec<ConnId>,
    left: Duration,
}

struct Conn {
    subject: usize,
    role: Role,
    link: Option<ConnId>,
}

impl World {
    fn new(seed: u64) -> Self {
        let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let mut dice = Dice(seed);
        let subjects = (0..IDENTITIES).map(|number| Subject::new(number, &mut dice)).collect::<Vec<_>>();
        Self {
            dice,
            now: Now { mono: Duration::from_secs(7), unix: Duration::from_secs(1_800_000_000) },
            table: Table::new(RULES),
            rules: RULES,
            key: PublicKey::from_bytes(key.as_bytes()).unwrap(),
            known: BTreeSet::new(),
            by_handle: subjects.iter().enumerate().map(|(at, subject)| (subject.handle, at)).collect(),
            subjects,
            conns: BTreeMap::new(),
            next_conn: 0,
            next_token: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Lets some time pass and does one thing.
    fn step(&mut self) {
        self.pass_time();
        match self.dice.below(1000) {
            0..400 => self.join(),
            400..490 => self.leave(),
            490..560 => self.refresh(),
            560..570 => self.release(),
            570..575 => self.kill(),
            575..950 => self.send(),
            950..960 => self.leave(),
            960..961 if self.dice.below(3) == 0 => self.drain(),
            961..963 => self.change_rules(),
            963..966 => self.set_wall_clock(),
            966..980 => self.charge_late(),
            _ => self.wait_for_deadline(),
        }
        self.check();
    }

    fn pass_time(&mut self) {
        let pause = match self.dice.below(500) {
            0..100 => Duration::ZERO,
            100..480 => Duration::from_micros(self.dice.below(60_000)),
            480..499 => Duration::from_nanos(self.dice.below(3_000_000_000)),
            _ => Duration::from_secs(self.dice.below(40)),
        };
        self.elapse(pause);
    }

    fn elapse(&mut self, pause: Duration) {
        self.now.mono += pause;
        self.now.unix += pause;
    }

    // What happens.

    fn join(&mut self) {
        let at = self.some_subject();
        let role = self.some_role();
        let claims = self.some_token(at);
        let tier = TIERS[self.dice.below(2) as usize];
        let conn = match self.dice.below(50) {
            0 => self.some_conn(),
            _ => self.new_conn(),
        };
        let known = self.conns.contains_key(&conn);
        let mut effects = Vec::new();
        let result = self.table.join(self.now, conn, role, &claims, &tier, &mut effects);
        let rest = self.follow_what_was_due(effects);

        if known && self.conns.contains_key(&conn) {
            assert_eq!(result.unwrap_err(), Refusal::AlreadyJoined);
            assert_eq!(rest, []);
            return self.see("already joined");
        }
        let expected = self.expected_of_join(at, &claims, &tier);
        match (&result, &expected) {
            (Ok(joined), Ok(created)) => assert_eq!(joined.created, *created),
            (Err(refusal), Err(expected)) => assert_eq!(refusal, expected),
            _ => panic!("join answered {result:?}, expected {expected:?}"),
        }
        if self.known.contains(&at) && claims.expires_at_unix > self.now.unix.as_secs() {
            let subject = &mut self.subjects[at];
            subject.latest_unix = subject.latest_unix.max(claims.expires_at_unix);
        }
        let joined = match result {
            Ok(joined) => joined,
            Err(refusal) => {
                assert_eq!(rest, []);
                return self.see(&format!("{refusal:?}"));
            }
        };
        self.conns.insert(conn, Conn { subject: at, role, link: None });
        if joined.created {
            self.begin(at, &claims, &tier, &joined);
        }
        let subject = &mut self.subjects[at];
        let Life::Live(live) = &mut subject.life else { panic!("joined what does not live") };
        assert!(Arc::ptr_eq(&joined.meter, subject.meter.as_ref().unwrap()));
        assert_eq!(joined.peer_present, !live.sides[role.other().index()].conns.is_empty());
        assert_eq!(joined.grant, live.grant(&joined.meter, subject.used));
        let side = &mut live.sides[role.index()];
        side.came = true;
        side.conns.push(conn);
        let excess = side.conns.len().saturating_sub(self.rules.connections_per_role);
        let mut replaced: Vec<ConnId> = side.conns.drain(..excess).collect();
        for effect in rest {
            match effect {
                Effect::Close { conn, code: CloseCode::Replaced, .. } => {
                    assert_eq!(conn, replaced.remove(0), "the oldest goes first");
                    self.conns.remove(&conn);
                    self.see("replaced");
                }
                Effect::Link { conn, to } => self.link(conn, to),
                other => panic!("a join had the effect {other:?}"),
            }
        }
        assert_eq!(replaced, []);
        self.see(if joined.created { "created" } else { "joined" });
    }

    fn begin(&mut self, at: usize, claims: &Claims, tier: &Tier, joined: &Joined) {
        let subject = &mut self.subjects[at];
        let again = !matches!(subject.life, Life::Unknown);
        if !again {
            subject.used = 0;
            subject.latest_unix = claims.expires_at_unix;
            *self.seen.entry("first life".into()).or_default() += 1;
        } else {
            *self.seen.entry("second life".into()).or_default() += 1;
        }
        subject.life = Life::Live(Box::new(Live {
            created: self.now.mono,
            expires_at_unix: claims.expires_at_unix,
            token_hash: claims.token_hash,
            limits: Limits::granted(claims, tier),
            sides: Default::default(),
        }));
        subject.meter = Some(joined.meter.clone());
        self.known.insert(at);
        assert!(self.known.len() <= self.rules.max_ledger || again, "the ledger overflows");
        assert!(self.table.len() <= self.rules.max_allocations, "too many allocations");
    }

    fn leave(&mut self) {
        let conn = self.some_conn();
        let mut effects = Vec::new();
        self.table.leave(self.now, conn, &mut effects);
        let rest = self.follow_what_was_due(effects);
        let Some(Conn { subject, role, .. }) = self.conns.remove(&conn) else {
            assert_eq!(rest, []);
            return self.see("left before");
        };
        let Life::Live(live) = &mut self.subjects[subject].life else { panic!("left what does not live") };
        let side = &mut live.sides[role.index()];
        side.conns.retain(|other| *other != conn);
        if side.conns.is_empty() {
            side.left = self.now.mono;
        }
        for effect in rest {
            let Effect::Link { conn, to } = effect else { panic!("a leave had the effect {effect:?}") };
            self.link(conn, to);
        }
        self.see("left");
    }

    fn refresh(&mut self) {
        let conn = self.some_conn();
        let at = match self.conns.get(&conn) {
            Some(conn) if self.dice.below(10) > 0 => conn.subject,
            _ => self.some_subject(),
        };
        let claims = match self.dice.below(4) {
            0 => self.some_token(at),
            _ => self.mint(at),
        };
        let tier = TIERS[self.dice.below(2) as usize];
        let mut effects = Vec::new();
        let result = self.table.refresh(self.now, conn, &claims, &tier, &mut effects);
        let rest = self.follow_what_was_due(effects);

        let expired = claims.expires_at_unix <= self.now.unix.as_secs();
        let Some(Conn { subject: own, .. }) = self.conns.get(&conn) else {
            assert_eq!((result, rest), (Err(Refusal::Gone), vec![]));
            return self.see("refreshed what is gone");
        };
        let own = *own;
        if expired {
            assert_eq!((result, rest), (Err(Refusal::Expired), vec![]));
            return self.see("refreshed too late");
        }
        if self.known.contains(&at) {
            let subject = &mut self.subjects[at];
            subject.latest_unix = subject.latest_unix.max(claims.expires_at_unix);
        }
        if own != at {
            assert_eq!((result, rest), (Err(Refusal::OtherAllocation), vec![]));
            return self.see("refreshed another");
        }
        let subject = &mut self.subjects[at];
        let Life::Live(live) = &mut subject.life else { panic!("a connection of what does not live") };
        let told: Vec<ConnId> = if live.token_hash == claims.token_hash {
            assert_eq!(result, Ok(()));
            vec![conn]
        } else if claims.expires_at_unix <= live.expires_at_unix {
            assert_eq!((result, rest), (Err(Refusal::NotLater), vec![]));
            return self.see("refreshed to no later");
        } else {
            assert_eq!(result, Ok(()));
            live.token_hash = claims.token_hash;
            live.expires_at_unix = claims.expires_at_unix;
            live.limits = Limits::granted(&claims, &tier);
            live.sides.iter().flat_map(|side| side.conns.iter().copied()).collect()
        };
        let grant = live.grant(subject.meter.as_ref().unwrap(), subject.used);
        let expected: Vec<Effect> = told.iter().map(|&conn| Effect::Refreshed { conn, grant }).collect();
        assert_eq!(rest, expected);
        self.see("refreshed");
    }

    fn release(&mut self) {
        let conn = self.some_conn();
        let mut effects = Vec::new();
        self.table.release(self.now, conn, &mut effects);
        let rest = self.follow_what_was_due(effects);
        let at = self.conns.get(&conn).map(|conn| conn.subject);
        self.follow_end(at, CloseCode::Released, rest);
    }

    fn kill(&mut self) {
        let at = self.some_subject();
        let handle = self.subjects[at].handle;
        let mut effects = Vec::new();
        let killed = self.table.kill(self.now, handle, "the simulation", &mut effects);
        let rest = self.follow_what_was_due(effects);
        let lives = matches!(self.subjects[at].life, Life::Live(_));
        assert_eq!(killed, lives);
        self.follow_end(lives.then_some(at), CloseCode::Killed, rest);
    }

    /// A train of datagrams or a piece of a stream, and now and then what is refused by the other leg.
    fn send(&mut self) {
        self.advance();
        let conn = self.some_conn();
        let Some(&Conn { subject: at, role, link: Some(_) }) = self.conns.get(&conn) else { return };
        let subject = &mut self.subjects[at];
        let meter = subject.meter.clone().unwrap();
        let now_nanos = self.now.mono.as_nanos() as u64;
        for _ in 0..1 + self.dice.below(12) {
            let bytes = self.dice.below(1500) as usize;
            let before = [meter.counts(Role::Device), meter.counts(Role::Peer)];
            let is_stream = self.dice.below(4) == 0;
            let charged = match is_stream {
                true => meter.charge_stream(now_nanos, role, bytes),
                false => meter.charge_datagram(now_nanos, role, bytes).map(|()| bytes),
            };
            match charged {
                Ok(charged) if self.dice.below(10) == 0 => {
                    match is_stream {
                        true => meter.refund_stream(role, charged),
                        false => meter.refund_datagram(role, charged),
                    }
                    assert_eq!([meter.counts(Role::Device), meter.counts(Role::Peer)], before);
                }
                Ok(charged) => {
                    assert!(charged <= bytes);
                    self.subjects[at].used += charged as u64;
                }
                Err(Denied::Quota) => {
                    let mut effects = Vec::new();
                    self.table.quota_exceeded(self.now, conn, &mut effects);
                    let rest = self.follow_what_was_due(effects);
                    let lives = self.conns.contains_key(&conn);
                    return self.follow_end(lives.then_some(at), CloseCode::QuotaExceeded, rest);
                }
                Err(Denied::ByteRate(wait) | Denied::PacketRate(wait) | Denied::GlobalRate(wait)) => {
                    assert!(wait > Duration::ZERO);
                    return self.see("throttled");
                }
                Err(Denied::OverBurst) => panic!("a datagram of {bytes} bytes over the burst"),
            }
        }
        self.see("sent");
    }

    /// A session that has not heard of the end yet forwards one more datagram.
    fn charge_late(&mut self) {
        self.advance();
        let now_nanos = self.now.mono.as_nanos() as u64;
        let over = |at: &&usize| matches!(self.subjects[**at].life, Life::Used);
        let Some(&at) = self.known.iter().find(over) else { return };
        let subject = &mut self.subjects[at];
        if let (Life::Used, Some(meter)) = (&subject.life, &subject.meter)
            && meter.charge_datagram(now_nanos, Role::Peer, 100).is_ok()
        {
            subject.used += 100;
            self.see("charged late");
        }
    }

    fn drain(&mut self) {
        let mut effects = Vec::new();
        self.table.end_all(self.now, CloseCode::Draining, "the relay stops", &mut effects);
        let mut rest = self.follow_what_was_due(effects);
        while !rest.is_empty() {
            let after = 1 + rest.iter().position(|effect| matches!(effect, Effect::Ended(_))).unwrap();
            let one: Vec<Effect> = rest.drain(..after).collect();
            let Effect::Ended(Ended { handle, .. }) = one[after - 1] else { unreachable!() };
            self.follow_end(Some(self.by_handle[&handle]), CloseCode::Draining, one);
        }
        assert!(self.table.is_empty() && self.conns.is_empty());
        self.see("drained");
    }

    fn change_rules(&mut self) {
        self.rules = match self.dice.below(2) {
            0 => RULES,
            _ => Rules {
                max_allocations: 20 + self.dice.below(60) as usize,
                max_ledger: 80 + self.dice.below(120) as usize,
                connections_per_role: 1 + self.dice.below(4) as usize,
                allocation_timeout: Duration::from_secs(100 + self.dice.below(400)),
                idle_timeout: Duration::from_secs(5 + self.dice.below(40)),
                pair_timeout: Duration::from_secs(5 + self.dice.below(100)),
            },
        };
        let mut effects = Vec::new();
        self.table.set_rules(self.now, self.rules, &mut effects);
        assert_eq!(self.follow_what_was_due(effects), []);
        self.see("rules changed");
    }

    /// Someone, or NTP, sets the clock on the wall.
    fn set_wall_clock(&mut self) {
        let step = Duration::from_millis(self.dice.below(200_000));
        match self.dice.below(2) {
            0 => self.now.unix += step,
            _ => self.now.unix -= step,
        }
        self.advance();
        self.see("wall clock set");
    }

    /// Nothing happens a nanosecond before the deadline; at the deadline something may.
    fn wait_for_deadline(&mut self) {
        self.advance();
        let Some(deadline) = self.table.deadline(self.now) else { return };
        let ahead = deadline - self.now.mono;
        self.elapse(ahead - Duration::from_nanos(1));
        let known = self.known.len();
        let mut effects = Vec::new();
        self.table.advance(self.now, &mut effects);
        assert_eq!(effects, [], "early");
        assert_eq!(self.table.remembered(), known, "forgotten early");
        self.elapse(Duration::from_nanos(1));
        self.advance();
        self.see("waited");
    }

    fn advance(&mut self) {
        let mut effects = Vec::new();
        self.table.advance(self.now, &mut effects);
        assert_eq!(self.follow_what_was_due(effects), []);
    }

    // What must follow.

    fn expected_of_join(&self, at: usize, claims: &Claims, tier: &Tier) -> Result<bool, Refusal> {
        let subject = &self.subjects[at];
        if Duration::from_secs(claims.expires_at_unix) <= self.now.unix {
            return Err(Refusal::Expired);
        }
        match subject.life {
            Life::Live(_) => return Ok(false),
            Life::Final(code) => return Err(Refusal::Ended(code)),
            Life::Used | Life::Unknown => {}
        }
        let live = || self.known.iter().map(|at| &self.subjects[*at]).filter(|subject| subject.lives());
        if live().count() >= self.rules.max_allocations {
            return Err(Refusal::AllocationsFull);
        }
        let device = |subject: &Subject| (subject.identity.signer.clone(), subject.identity.device_id);
        let has = live().filter(|other| device(other) == device(subject)).count();
        if tier.allocations_per_device.is_some_and(|most| has >= most as usize) {
            return Err(Refusal::DeviceFull);
        }
        if matches!(subject.life, Life::Unknown) && self.known.len() >= self.rules.max_ledger {
            return Err(Refusal::LedgerFull);
        }
        Ok(true)
    }

    /// What the passing of time alone must have done by now, by code.
    fn due(&self) -> BTreeMap<usize, BTreeSet<CloseCode>> {
        let mut due: BTreeMap<usize, BTreeSet<CloseCode>> = BTreeMap::new();
        for &at in &self.known {
            for (end, code) in self.subjects[at].ends(&self.rules, self.now) {
                if end <= self.now.mono {
                    due.entry(at).or_default().insert(code);
                }
            }
        }
        due
    }

    /// Follows the ends that were due, each for a reason that holds; answers with the effects after those.
    fn follow_what_was_due(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        let mut due = self.due();
        for _ in 0..due.len() {
            let ended = effects.iter().position(|effect| matches!(effect, Effect::Ended(_)));
            let after = 1 + ended.unwrap_or_else(|| panic!("still to end: {due:?}"));
            let rest = effects.split_off(after);
            let Effect::Ended(Ended { handle, code, .. }) = effects[after - 1] else { unreachable!() };
            let at = self.by_handle[&handle];
            let reasons = due.remove(&at).unwrap_or_else(|| panic!("{code} was not due"));
            assert!(reasons.contains(&code), "ended by {code}, due by {reasons:?}");
            self.follow_end(Some(at), code, effects);
            effects = rest;
        }
        self.forget();
        effects
    }

    /// The end of one allocation: its connections are closed, device first and oldest first, and then it is over.
    fn follow_end(&mut self, at: Option<usize>, code: CloseCode, effects: Vec<Effect>) {
        let Some(at) = at else {
            assert_eq!(effects, []);
            return self.see("end of nothing");
        };
        let subject = &mut self.subjects[at];
        let Life::Live(live) = &subject.life else { panic!("{code} for what does not live") };
        let mut effects = effects.into_iter();
        for &expected in live.sides.iter().flat_map(|side| &side.conns) {
            let effect = effects.next();
            let Some(Effect::Close { conn, code: with, message }) = effect else {
                panic!("{effect:?} instead of a close")
            };
            assert_eq!((conn, with), (expected, code));
            assert!(!message.is_empty());
            self.conns.remove(&conn);
        }
        let rest: Vec<_> = effects.collect();
        let [Effect::Ended(said)] = &rest[..] else { panic!("{rest:?} instead of an end") };
        let ended = Ended {
            handle: subject.handle,
            code,
            lifetime: self.now.mono - live.created,
            bytes_used: subject.used,
            // Of the meter, which has tests of its own.
            quota_bytes: said.quota_bytes,
        };
        assert_eq!(*said, ended);
        let is_final = matches!(code, CloseCode::Released | CloseCode::Killed | CloseCode::QuotaExceeded);
        subject.life = match (is_final, subject.used) {
            (true, _) => Life::Final(code),
            (false, 0) => Life::Unknown,
            (false, _) => Life::Used,
        };
        if let Life::Unknown = subject.life {
            self.known.remove(&at);
        }
        self.forget();
        self.see(code.name());
    }

    /// What is over is forgotten when its last token has expired.
    fn forget(&mut self) {
        let now_unix = self.now.unix;
        let subjects = &mut self.subjects;
        self.known.retain(|&at| {
            let subject = &mut subjects[at];
            let forgotten = !subject.lives() && Duration::from_secs(subject.latest_unix) <= now_unix;
            if forgotten {
                subject.life = Life::Unknown;
            }
            !forgotten
        });
    }

    fn link(&mut self, from: ConnId, to: Option<ConnId>) {
        let [subject, role] = [self.conns[&from].subject, self.conns[&from].role.index()];
        if let Some(to) = to {
            let to = &self.conns[&to];
            assert_eq!([to.subject, to.role.other().index()], [subject, role], "linked across allocations");
        }
        let link = &mut self.conns.get_mut(&from).unwrap().link;
        assert_ne!(*link, to, "told what it knew");
        *link = to;
    }

    /// What holds after every step.
    fn check(&self) {
        self.table.assert_consistent();
        let mut live = 0;
        let mut conns = 0;
        let mut due: Option<Duration> = None;
        let mut wall_unix: Option<u64> = None;
        for &at in &self.known {
            let subject = &self.subjects[at];
            let Life::Live(life) = &subject.life else {
                assert!(self.table.summary(subject.handle).is_none(), "what is over lives");
                wall_unix = wall_unix.into_iter().chain([subject.latest_unix]).min();
                continue;
            };
            live += 1;
            wall_unix = wall_unix.into_iter().chain([life.expires_at_unix]).min();
            due =
                due.into_iter().chain(subject.ends(&self.rules, self.now).map(|(end, _)| end).skip(1)).min();
            let meter = subject.meter.as_ref().unwrap();
            assert_eq!(meter.bytes_used(), subject.used, "use was lost");
            assert_eq!(Role::BOTH.map(|role| meter.counts(role).bytes).iter().sum::<u64>(), subject.used);
            for role in Role::BOTH {
                let side = &life.sides[role.index()];
                conns += side.conns.len();
                let newest = life.sides[role.other().index()].conns.last().copied();
                for conn in &side.conns {
                    assert_eq!(self.conns[conn].link, newest, "not linked to the newest of the other side");
                }
            }
        }
        assert_eq!(self.table.len(), live);
        assert_eq!(self.table.remembered(), self.known.len());
        assert_eq!(self.table.connections(), conns);
        assert_eq!(self.conns.len(), conns);
        let wall = wall_unix.map(|at_unix| {
            let ahead = Duration::from_secs(at_unix).saturating_sub(self.now.unix);
            self.now.mono + ahead.min(Duration::from_secs(60))
        });
        let deadline = self.table.deadline(self.now);
        assert_eq!(deadline, due.into_iter().chain(wall).min());
        assert!(deadline.is_none_or(|deadline| deadline > self.now.mono), "overdue");
    }

    /// The end of the world: everybody leaves, everything expires, nothing is left.
    fn wind_up(&mut self) {
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in conns {
            let mut effects = Vec::new();
            self.table.leave(self.now, conn, &mut effects);
        }
        assert_eq!(self.table.connections(), 0);
        self.elapse(Duration::from_secs(100_000));
        let mut effects = Vec::new();
        self.table.advance(self.now, &mut effects);
        assert!(effects.iter().all(|effect| matches!(effect, Effect::Ended(_))), "nobody is left to be told");
        assert_eq!((self.table.len(), self.table.remembered()), (0, 0));
        assert_eq!(self.table.deadline(self.now), None);
        self.table.assert_consistent();
    }

    /// Something that a life with everything in it contains, and this one did not so far.
    fn unseen(&self) -> Option<&'static str> {
        EVERYTHING.into_iter().find(|thing| !self.seen.contains_key(*thing))
    }

    // What is drawn.

    fn see(&mut self, thing: &str) {
        match self.seen.get_mut(thing) {
            Some(times) => *times += 1,
            None => _ = self.seen.insert(thing.into(), 1),
        }
    }

    /// Mostly one of a few at a time, so that they meet; those move on, so that all have their turn.
    fn some_subject(&mut self) -> usize {
        let era = self.now.mono.as_secs() as usize / 10 * 10;
        match self.dice.below(20) {
            0 => self.dice.below(IDENTITIES as u64) as usize,
            _ => (era + self.dice.below(100) as usize) % IDENTITIES,
        }
    }

    fn some_role(&mut self) -> Role {
        Role::BOTH[self.dice.below(2) as usize]
    }

    /// A connection that lives, or any that ever did or will.
    fn some_conn(&mut self) -> ConnId {
        let any = ConnId(self.dice.below(self.next_conn + 2));
        if self.dice.below(20) == 0 {
            return any;
        }
        let after = self.conns.range(any..).next().or_else(|| self.conns.iter().next_back());
        after.map_or(any, |(conn, _)| *conn)
    }

    fn new_conn(&mut self) -> ConnId {
        self.next_conn += 1;
        ConnId(self.next_conn)
    }

    /// One of the subject's tokens, mostly the newest, and a new one when that has expired.
    fn some_token(&mut self, at: usize) -> Claims {
        let now_unix = self.now.unix.as_secs();
        let draw = self.dice.below(10);
        let tokens = &self.subjects[at].tokens;
        match (draw, tokens.last()) {
            (0, _) | (_, None) => self.mint(at),
            (1, _) => tokens[self.dice.below(tokens.len() as u64) as usize].clone(),
            (2, Some(newest)) => newest.clone(),
            (_, Some(newest)) if newest.expires_at_unix > now_unix => newest.clone(),
            _ => self.mint(at),
        }
    }

    fn mint(&mut self, at: usize) -> Claims {
        self.next_token += 1;
        let lifetime_secs = match self.dice.below(10) {
            0 => self.dice.below(3),
            _ => 20 + self.dice.below(600),
        };
        let claims = Claims {
            identity: self.subjects[at].identity.clone(),
            expires_at_unix: self.now.unix.as_secs() + lifetime_secs,
            bandwidth_bytes_per_sec: (self.dice.below(2) == 0).then(|| 1 + self.dice.below(300_000)),
            quota_bytes: (self.dice.below(2) == 0).then(|| 1 + self.dice.below(500_000)),
            tier: None,
            signed_by: self.key,
            device_key: self.key,
            peer_key: self.key,
            token_hash: TokenHash::of(&self.next_token.to_le_bytes()),
        };
        self.subjects[at].tokens.push(claims.clone());
        claims
    }
}

impl Subject {
    fn new(number: usize, dice: &mut Dice) -> Self {
        let signer = match dice.below(3) {
            0 => Signer::Issuer("backend".into()),
            _ => Signer::Device,
        };
        let mut allocation_id = [0; 16];
        // Often the same id under another signer or pair: that is another allocation.
        allocation_id[..8].copy_from_slice(&(number as u64 / 2).to_le_bytes());
        let mut peer_id = [0; 32];
        peer_id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let identity = Identity {
            signer,
            device_id: DeviceId([dice.below(DEVICES) as u8; 32]),
            peer_id: PeerId(peer_id),
            allocation_id: AllocationId(allocation_id),
        };
        Self {
            handle: identity.handle(),
            identity,
            tokens: Vec::new(),
            latest_unix: 0,
            used: 0,
            meter: None,
            life: Life::Unknown,
        }
    }

    fn lives(&self) -> bool {
        matches!(self.life, Life::Live(_))
    }

    /// When it ends, and why, if nobody does anything more: first by its token, then by each timeout there is.
    fn ends(&self, rules: &Rules, now: Now) -> impl Iterator<Item = (Duration, CloseCode)> {
        let mut ends = Vec::new();
        if let Life::Live(live) = &self.life {
            let ahead = Duration::from_secs(live.expires_at_unix).saturating_sub(now.unix);
            ends.push((now.mono + ahead, CloseCode::Expired));
            ends.push((live.created + rules.allocation_timeout, CloseCode::Expired));
            if live.sides.iter().any(|side| !side.came) {
                ends.push((live.created + rules.pair_timeout, CloseCode::PairTimeout));
            }
            for side in live.sides.iter().filter(|side| side.came && side.conns.is_empty()) {
                ends.push((side.left + rules.idle_timeout, CloseCode::PeerGone));
            }
        }
        ends.into_iter()
    }
}

impl Live {
    fn grant(&self, meter: &Meter, bytes_used: u64) -> Grant {
        Grant {
            expires_at_unix: self.expires_at_unix,
            limits: self.limits,
            burst_bytes: meter.burst_bytes(),
            bytes_used,
        }
    }
}

/// Sebastiano Vigna's SplitMix64: small, and every seed is as good as any other.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}
