//! The raw channel against a relay that does as it is told, and against strangers who speak like one.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use tokio::{
    join,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::fake::{Fake, Guest, Pair, RawWay, soon, steady_time};
use crate::{
    client::{Event, Events, MAX_DATAGRAM_BYTES, SendError, Session},
    wire::{
        CloseCode,
        channel::{self, Tag},
        control::{Allocated, Channel, Feature, Migrate, PathLimit, RelayMessage},
    },
};

const TAG: Tag = Tag::new(3, [1, 2, 3, 4, 5, 6]);
const OTHER: Tag = Tag::new(3, [6, 5, 4, 3, 2, 1]);
const SECOND: Duration = Duration::from_secs(1);

/// Lets the next client in, and offers it a raw channel.
async fn offered(fake: &Fake) -> Guest {
    let mut guest = fake.hello().await;
    assert_eq!(guest.hello.features, [Feature::RawChannel]);
    let allocated = Allocated { features: vec![Feature::RawChannel.into()], ..guest.allocated() };
    guest.say(RelayMessage::Allocated(allocated)).await;
    guest
}

fn named(tag: &[u8]) -> RelayMessage {
    RelayMessage::Channel(Channel { tag: Bytes::copy_from_slice(tag) })
}

fn limits(max_datagram_bytes: u32, max_raw_bytes: u32) -> RelayMessage {
    RelayMessage::PathLimit(PathLimit { max_datagram_bytes, max_raw_bytes })
}

struct Stage {
    pair: Pair,
    fake: Fake,
    way: RawWay,
    session: Session,
    guest: Guest,
    events: Events,
    _clock: JoinSet<()>,
}

impl Stage {
    /// A session whose relay has offered a raw channel, and named none yet.
    async fn new() -> Self {
        Self::with(steady_time()).await
    }

    async fn with(clock: JoinSet<()>) -> Self {
        let pair = Pair::new();
        let fake = Fake::new(&pair);
        let way = RawWay::to(&fake).await;
        let relay = way.relay(&fake);
        let (session, guest) = join!(relay.connect(pair.ticket()), offered(&fake));
        let session = session.unwrap();
        let events = session.events();
        Self { pair, fake, way, session, guest, events, _clock: clock }
    }

    /// The same with an open channel, whose probes are answered.
    async fn open() -> Self {
        Self::new().await.opened().await
    }

    async fn opened(self) -> Self {
        let mut stage = self;
        stage.way.answers.store(true, Relaxed);
        stage.guest.say(limits(1200, 1190)).await;
        stage.guest.say(named(TAG.as_bytes())).await;
        assert!(stage.turned().await);
        stage
    }

    /// What is next said of the channel.
    async fn turned(&mut self) -> bool {
        turned(&mut self.events).await
    }

    /// The QUIC datagram that comes next.
    async fn datagram(&self) -> Bytes {
        soon(self.guest.connection.read_datagram()).await.unwrap()
    }

    fn data(&self, tag: Tag, payload: &[u8]) -> Vec<u8> {
        [&channel::data_header(tag)[..], payload].concat()
    }

    /// Until nothing of what has been sent is under way any more; what has arrived raw is forgotten.
    async fn quiet(&mut self) {
        sleep(SECOND / 10).await;
        while !self.way.is_quiet() {}
    }

    /// Until everything that was sent to the client before has been looked at: this comes after it.
    async fn settled(&self) {
        self.guest.connection.send_datagram(Bytes::from_static(b"settled")).unwrap();
        while soon(self.session.recv_datagram()).await.unwrap() != "settled" {}
    }
}

async fn turned(events: &mut Events) -> bool {
    loop {
        match soon(events.recv()).await {
            Some(Event::RawChannel { open }) => return open,
            Some(Event::Ended(end)) => panic!("{end}"),
            Some(_) => {}
            None => panic!("no more events"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_opens_it_and_is_answered_at_once_with_its_cookie() {
    let mut stage = Stage::new().await;
    stage.session.send_datagram("before".into()).unwrap();
    assert_eq!(stage.datagram().await, "before");
    assert!(stage.way.is_quiet());

    stage.guest.say(limits(1200, 1190)).await;
    stage.guest.say(named(TAG.as_bytes())).await;
    let (tag, first, cookie) = stage.way.probe().await;
    assert_eq!((tag, cookie), (TAG, [0; 8]));
    assert!(!stage.session.stats().raw_open);
    stage.way.send(&channel::answer(TAG, first, [9; 8])).await;
    let answered_at = Instant::now();
    let (_, second, cookie) = stage.way.probe().await;
    assert_eq!(cookie, [9; 8]);
    assert!(answered_at.elapsed() < SECOND / 2 && second != first);
    assert!(stage.turned().await);

    // No further one before the second is over, though this answer too has a new cookie.
    stage.way.send(&channel::answer(TAG, second, [8; 8])).await;
    let (_, third, cookie) = stage.way.probe().await;
    assert_eq!(cookie, [8; 8]);
    assert!(answered_at.elapsed() >= SECOND && third != second);

    for (payload, to) in [("there", &stage.session), ("", &stage.session)] {
        to.send_datagram(payload.into()).unwrap();
        assert_eq!(stage.way.data().await, (TAG, payload.into()));
    }
    stage.session.send_datagram_wait("patient".into()).await.unwrap();
    assert_eq!(stage.way.data().await, (TAG, b"patient".into()));
    for payload in ["back", ""] {
        stage.way.send(&stage.data(TAG, payload.as_bytes())).await;
        assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), payload);
    }
    // By QUIC as well as raw, whenever the relay likes.
    stage.guest.connection.send_datagram(Bytes::from_static(b"by QUIC")).unwrap();
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "by QUIC");
    let stats = stage.session.stats();
    assert_eq!((stats.datagrams_sent, stats.raw_sent, stats.datagram_bytes_sent), (4, 3, 18));
    assert_eq!((stats.datagrams_received, stats.raw_received, stats.datagram_bytes_received), (3, 2, 11));
    assert_eq!((stats.probes_sent, stats.probes_answered), (3, 2));
    assert_eq!((stats.raw_open, stats.raw_max_bytes), (true, Some(1190)));
}

#[tokio::test(start_paused = true)]
async fn probes_go_once_a_second_and_again_with_another_cookie_and_keep_it_open() {
    let mut stage = Stage::open().await;
    let started = Instant::now();
    for _ in 0..2 {
        stage.way.probe().await;
    }
    for number in 2..30 {
        stage.session.send_datagram("awake".into()).unwrap();
        let (_, _, cookie) = stage.way.probe().await;
        assert_eq!(cookie, [number; 8], "that of the last answer");
    }
    let took = started.elapsed();
    // Here each answer has a cookie of its own.
    assert!(took >= 13 * SECOND && took <= 15 * SECOND, "{took:?}");
    let stats = stage.session.stats();
    assert!(stats.raw_open && stats.probes_sent - stats.probes_answered <= 1, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_closes_it_is_looked_into_by_quic_and_an_answer_opens_it_again() {
    let mut stage = Stage::open().await;
    sleep(3 * SECOND).await;
    let pings = || stage.guest.pings.seen.lock().unwrap().len();
    // What the beginning cost.
    let before = pings();
    sleep(3 * SECOND).await;
    assert_eq!(pings(), before, "nothing is amiss");
    stage.way.answers.store(false, Relaxed);
    let silent_since = Instant::now();
    assert!(!stage.turned().await);
    let took = silent_since.elapsed();
    assert!(took <= 2 * SECOND + SECOND / 10, "{took:?}");
    while stage.guest.pings.seen.lock().unwrap().len() == before {
        assert!(silent_since.elapsed() < took + SECOND / 2, "it was not looked into");
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((stage.session.stats().raw_open, stage.session.stats().raw_max_bytes), (false, None));
    stage.quiet().await;

    // It goes on asking, once a second.
    let (_, _, cookie) = stage.way.probe().await;
    let asked_at = Instant::now();
    for _ in 0..4 {
        assert_eq!(stage.way.probe().await.2, cookie, "that of the last answer there was");
    }
    let took = asked_at.elapsed();
    assert!(took >= 4 * SECOND - SECOND / 10 && took <= 4 * SECOND + SECOND / 10, "{took:?}");
    assert_eq!(stage.guest.pings.seen.lock().unwrap().len(), before + 1, "one is enough");
    stage.session.send_datagram("by QUIC".into()).unwrap();
    assert_eq!(stage.datagram().await, "by QUIC");
    stage.way.answers.store(true, Relaxed);
    assert!(stage.turned().await);
    let (_, _, stale) = stage.way.probe().await;
    let (_, _, fresh) = stage.way.probe().await;
    assert_eq!((stale, fresh == cookie), (cookie, false), "the further probe has the new cookie");
    stage.session.send_datagram("raw".into()).unwrap();
    assert_eq!(stage.way.data().await, (TAG, b"raw".into()));
    // All the while nobody thought of another connection.
    assert_eq!(stage.session.stats().reconnects, 0);
}

#[tokio::test(start_paused = true)]
async fn strangers_and_nonsense_are_dropped_and_counted() {
    let mut stage = Stage::open().await;
    stage.way.answers.store(false, Relaxed);
    let (_, seen, _) = stage.way.probe().await;
    let before = stage.session.stats();
    let stranger = stage.data(TAG, b"from elsewhere");
    stage.way.spoof(&stranger).await;
    stage.way.spoof(&channel::answer(TAG, seen, [1; 8])).await;
    stage.way.send(&stage.data(OTHER, b"another's")).await;
    stage.way.send(&channel::answer(OTHER, seen, [1; 8])).await;
    let nonsense: [&[u8]; 6] = [
        &[0x20],
        &channel::data_header(TAG)[..7],
        &[0x3f; 40],
        &[0; 1200],
        &channel::probe(TAG, [1; 8], [0; 8]),
        // No probe of this one; and answered already.
        &channel::answer(TAG, [7; 8], [7; 8]),
    ];
    for packet in nonsense {
        stage.way.send(packet).await;
    }
    stage.way.send(&channel::answer(TAG, seen, [7; 8])).await;
    stage.way.send(&stage.data(TAG, b"good")).await;
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "good");
    stage.settled().await;
    assert!(stage.session.try_recv_datagram().is_none());
    let after = stage.session.stats();
    assert_eq!(after.raw_dropped_source - before.raw_dropped_source, 2);
    assert_eq!(after.raw_dropped_tag - before.raw_dropped_tag, 2);
    assert_eq!(after.raw_dropped_malformed - before.raw_dropped_malformed, 7);
    assert_eq!(after.raw_received - before.raw_received, 1);
    assert_eq!(after.probes_answered, before.probes_answered);
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_another_nonce_opens_nothing() {
    let mut stage = Stage::new().await;
    stage.guest.say(named(TAG.as_bytes())).await;
    for _ in 0..5 {
        let (_, mut nonce, cookie) = stage.way.probe().await;
        assert_eq!(cookie, [0; 8]);
        nonce[7] ^= 1;
        stage.way.send(&channel::answer(TAG, nonce, [9; 8])).await;
    }
    let stats = stage.session.stats();
    assert_eq!((stats.probes_answered, stats.raw_open), (0, false));
    assert!(stats.raw_dropped_malformed >= 4);
}

#[tokio::test(start_paused = true)]
async fn without_the_option_it_is_not_listed_and_a_channel_breaks_the_protocol() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(|options| options.raw_channel = false);
    let served = async {
        let mut guest = fake.hello().await;
        assert_eq!(guest.hello.features, []);
        // Listed by the relay alone, it is in force for nobody.
        let allocated = Allocated { features: vec![Feature::RawChannel.into()], ..guest.allocated() };
        guest.say(RelayMessage::Allocated(allocated)).await;
        guest.say(named(TAG.as_bytes())).await;
        guest
    };
    let (session, guest) = join!(relay.connect(pair.ticket()), served);
    assert_eq!(guest.closed_with().await, CloseCode::ProtocolError);
    let end = soon(session.unwrap().closed()).await;
    assert!(end.to_string().contains("failed"), "{end}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_was_not_offered_or_has_no_tag_breaks_the_protocol() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay();
    let (session, mut guest) = join!(relay.connect(pair.ticket()), fake.guest());
    guest.say(named(TAG.as_bytes())).await;
    assert_eq!(guest.closed_with().await, CloseCode::ProtocolError);
    soon(session.unwrap().closed()).await;
    for tag in [&[1; 6][..], &[1; 8], &[]] {
        let mut stage = Stage::new().await;
        stage.guest.say(named(tag)).await;
        assert_eq!(stage.guest.closed_with().await, CloseCode::ProtocolError, "{tag:?}");
        soon(stage.session.closed()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_channel_replaces_the_tag() {
    let mut stage = Stage::open().await;
    stage.way.answers.store(false, Relaxed);
    stage.quiet().await;
    stage.guest.say(named(OTHER.as_bytes())).await;
    let (tag, nonce, cookie) = stage.way.probe().await;
    assert_eq!((tag, cookie), (OTHER, [0; 8]));
    assert!(!stage.turned().await);
    stage.way.send(&channel::answer(OTHER, nonce, [1; 8])).await;
    assert!(stage.turned().await);
    stage.session.send_datagram("new".into()).unwrap();
    assert_eq!(stage.way.data().await, (OTHER, b"new".into()));
    stage.way.send(&stage.data(TAG, b"old")).await;
    stage.way.send(&stage.data(OTHER, b"new")).await;
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "new");
    assert_eq!(stage.session.stats().raw_dropped_tag, 1);
}

#[tokio::test(start_paused = true)]
async fn another_connection_has_another_channel() {
    let mut stage = Stage::open().await;
    stage.guest.drop_with(CloseCode::Internal.number().into());
    assert!(!stage.turned().await);
    let mut next = offered(&stage.fake).await;
    loop {
        match soon(stage.events.recv()).await {
            Some(Event::Connected { .. }) => break,
            other => {
                assert!(matches!(other, Some(Event::Disconnected { .. } | Event::PeerLeft)), "{other:?}")
            }
        }
    }
    stage.quiet().await;
    sleep(3 * SECOND).await;
    assert!(stage.way.is_quiet(), "it probes for a connection that is gone");
    stage.session.send_datagram("by QUIC".into()).unwrap();
    assert_eq!(soon(next.connection.read_datagram()).await.unwrap(), "by QUIC");

    next.say(limits(1200, 1190)).await;
    next.say(named(OTHER.as_bytes())).await;
    assert!(stage.turned().await);
    stage.session.send_datagram("raw".into()).unwrap();
    assert_eq!(stage.way.data().await, (OTHER, b"raw".into()));
    stage.way.send(&stage.data(TAG, b"late")).await;
    stage.way.send(&stage.data(OTHER, b"in time")).await;
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "in time");
    assert_eq!(stage.session.stats().raw_dropped_tag, 1);
}

#[tokio::test(start_paused = true)]
async fn what_fits_goes_raw_and_what_does_not_as_before() {
    let mut stage = Stage::open().await;
    let fits = async |stage: &mut Stage, bytes: usize| {
        stage.session.send_datagram(vec![1; bytes].into()).unwrap();
        assert_eq!(stage.way.data().await.1.len(), bytes);
    };
    let by_stream = async |stage: &mut Stage, bytes: usize| {
        stage.session.send_datagram(vec![1; bytes].into()).unwrap();
        let mut recv = soon(stage.guest.connection.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(1 << 20)).await.unwrap().len(), bytes + 1);
    };
    fits(&mut stage, 1190).await;
    by_stream(&mut stage, MAX_DATAGRAM_BYTES).await;
    assert!(matches!(
        stage.session.send_datagram(vec![1; MAX_DATAGRAM_BYTES + 1].into()),
        Err(SendError::TooLarge { .. })
    ));
    let told = async |stage: &mut Stage, datagram: u32, raw: u32| {
        stage.guest.say(limits(datagram, raw)).await;
        while !matches!(soon(stage.events.recv()).await, Some(Event::PathLimit { max_datagram_bytes })
            if max_datagram_bytes == datagram as usize)
        {}
    };
    // Between the two limits: raw, or by stream.
    told(&mut stage, 500, 600).await;
    assert_eq!(stage.session.max_datagram_bytes(), Some(500));
    fits(&mut stage, 600).await;
    by_stream(&mut stage, 601).await;
    // The other way round: as a datagram.
    told(&mut stage, 700, 600).await;
    stage.session.send_datagram(vec![1; 601].into()).unwrap();
    assert_eq!(stage.datagram().await.len(), 601);
    // None raw at all.
    told(&mut stage, 701, 0).await;
    for bytes in [0, 1] {
        stage.session.send_datagram(vec![1; bytes].into()).unwrap();
        assert_eq!(stage.datagram().await.len(), bytes);
    }
    assert_eq!((stage.session.stats().raw_open, stage.session.stats().raw_max_bytes), (true, None));
    // More than this side's own path carries.
    told(&mut stage, 1200, 60_000).await;
    let largest = stage.session.stats().raw_max_bytes.unwrap();
    assert!((1192..1500).contains(&largest), "{largest}");
    by_stream(&mut stage, 5000).await;
}

#[tokio::test(start_paused = true)]
async fn trains_go_and_come_whole() {
    let mut stage = Stage::open().await;
    // More than the kernel takes at once, and the last one shorter.
    let count = 80;
    let data: Vec<u8> = (0..1000 * count - 400).map(|index| (index / 1000) as u8).collect();
    assert_eq!(stage.session.send_train(&data, 1000).unwrap(), count);
    for number in 0..count {
        let (tag, payload) = stage.way.data().await;
        let bytes = if number == count - 1 { 600 } else { 1000 };
        assert_eq!((tag, payload), (TAG, vec![number as u8; bytes]), "{number}");
    }
    assert_eq!(stage.session.send_train(b"all of it", 0).unwrap(), 1);
    assert_eq!(stage.session.send_train(b"all of it", 1000).unwrap(), 1);
    for _ in 0..2 {
        assert_eq!(stage.way.data().await.1, b"all of it");
    }
    assert_eq!(stage.session.send_train(b"", 1000).unwrap(), 0);
    let stats = stage.session.stats();
    assert_eq!((stats.raw_sent, stats.datagrams_sent), (82, 82));
    assert_eq!(stats.datagram_bytes_sent, data.len() as u64 + 18);

    let mut packets = Vec::new();
    for number in 0..40u8 {
        packets.extend_from_slice(&stage.data(TAG, &[number; 1000]));
    }
    packets.truncate(packets.len() - 300);
    stage.way.send_train(&packets, 1008);
    let train = soon(stage.session.recv_train()).await.unwrap();
    assert_eq!((train.count(), train.segment_bytes, train.data.len()), (40, 1000, 39_700));
    for (number, datagram) in train.datagrams().enumerate() {
        assert!(datagram.iter().all(|byte| usize::from(*byte) == number), "{number}");
    }
    // One at a time, and the rest as a train again.
    stage.way.send_train(&packets, 1008);
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), vec![0; 1000]);
    assert_eq!(stage.session.try_recv_datagram().unwrap(), vec![1; 1000]);
    assert_eq!(stage.session.try_recv_train().unwrap().count(), 38);
    assert_eq!(stage.session.try_recv_train(), None);
    let stats = stage.session.stats();
    assert_eq!((stats.raw_received, stats.datagrams_received), (80, 80));
    assert_eq!(stats.datagram_bytes_received, 2 * 39_700);
}

#[tokio::test(start_paused = true)]
async fn a_train_of_several_tags_and_of_empty_datagrams_is_told_apart() {
    let stage = Stage::open().await;
    let mut packets = Vec::new();
    for number in 0..9u8 {
        let tag = if number % 3 == 2 { OTHER } else { TAG };
        packets.extend_from_slice(&stage.data(tag, &[number; 100]));
    }
    stage.way.send_train(&packets, 108);
    let mut got = Vec::new();
    for count in [2, 2, 2] {
        let train = soon(stage.session.recv_train()).await.unwrap();
        assert_eq!(train.count(), count);
        got.extend(train.datagrams().map(|datagram| datagram[0]));
    }
    assert_eq!(got, [0, 1, 3, 4, 6, 7]);
    assert_eq!(stage.session.stats().raw_dropped_tag, 3);
    // The last one is empty.
    packets = [stage.data(TAG, &[7; 100]), stage.data(TAG, &[])].concat();
    stage.way.send_train(&packets, 108);
    stage.way.send_train(&stage.data(TAG, &[]).repeat(3), 8);
    for bytes in [100, 0, 0, 0, 0] {
        assert_eq!(soon(stage.session.recv_datagram()).await.unwrap().len(), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_train_goes_by_datagrams_when_it_cannot_go_raw() {
    let pair = Pair::new();
    let fake = Fake::new(&pair);
    let relay = fake.relay_with(|options| options.datagram_send_buffer_bytes = 20_000);
    let (session, guest) = join!(relay.connect(pair.ticket()), fake.guest());
    let session = session.unwrap();
    let data: Vec<u8> = (0..9_900u32).map(|index| (index / 1000) as u8).collect();
    assert_eq!(session.send_train(&data, 1000).unwrap(), 10);
    for number in 0..10 {
        let datagram = soon(guest.connection.read_datagram()).await.unwrap();
        assert_eq!(datagram, vec![number as u8; if number == 9 { 900 } else { 1000 }]);
    }
    // As many as there is room for, and the others are counted.
    let all = 100;
    let accepted = session.send_train(&vec![1; all * 1000], 1000).unwrap();
    assert!((10..25).contains(&accepted), "{accepted}");
    assert!(matches!(session.send_train(&[1; 3000], 1000), Err(SendError::BufferFull)));
    let stats = session.stats();
    assert_eq!(stats.send_buffer_full, (all - accepted) as u64 + 3);
    assert_eq!(stats.datagrams_sent, 10 + accepted as u64);
    // Each of them by a stream.
    let got_bytes = MAX_DATAGRAM_BYTES + 1;
    assert!(matches!(
        session.send_train(&vec![1; got_bytes], 0),
        Err(SendError::TooLarge { got_bytes: got }) if got == got_bytes
    ));
    for _ in 0..accepted {
        soon(guest.connection.read_datagram()).await.unwrap();
    }
    assert_eq!(session.send_train(&vec![2; 10_000], 5000).unwrap(), 2);
    for _ in 0..2 {
        let mut recv = soon(guest.connection.accept_uni()).await.unwrap();
        assert_eq!(soon(recv.read_to_end(1 << 20)).await.unwrap().len(), 5001);
    }
    session.close();
    assert!(matches!(session.send_train(b"x", 1), Err(SendError::Ended(_))));
}

#[tokio::test(start_paused = true)]
async fn a_new_local_address_goes_by_quic_until_a_probe_from_there_is_answered() {
    let mut stage = Stage::open().await;
    let before = *stage.way.client.lock().unwrap();
    stage.quiet().await;
    stage.way.answers.store(false, Relaxed);
    stage.session.rebind().unwrap();
    assert!(!stage.turned().await);
    stage.session.send_datagram("by QUIC".into()).unwrap();
    assert_eq!(stage.datagram().await, "by QUIC");
    let (tag, nonce, _) = stage.way.probe().await;
    assert_ne!(*stage.way.client.lock().unwrap(), before);
    stage.way.send(&channel::answer(tag, nonce, [7; 8])).await;
    assert!(stage.turned().await);
    assert_eq!(stage.way.probe().await.2, [7; 8]);
    stage.session.send_datagram("raw".into()).unwrap();
    assert_eq!(stage.way.data().await, (TAG, b"raw".into()));
    stage.way.send(&stage.data(TAG, b"back")).await;
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "back");
    assert_eq!(stage.session.stats().reconnects, 0);
}

#[tokio::test(start_paused = true)]
async fn a_socket_without_room_refuses_and_a_patient_sender_waits() {
    let mut stage = Stage::open().await;
    stage.quiet().await;
    let link = stage.session.link().unwrap();
    link.local.port.swap_socket();
    assert!(matches!(stage.session.send_datagram("x".into()), Err(SendError::BufferFull)));
    assert!(matches!(stage.session.send_datagram("".into()), Err(SendError::BufferFull)));
    assert!(matches!(stage.session.send_train(b"four", 1), Err(SendError::BufferFull)));
    let stats = stage.session.stats();
    assert_eq!((stats.send_buffer_full, stats.datagrams_sent, stats.raw_sent), (6, 0, 0));
    stage.session.send_datagram_wait("patient".into()).await.unwrap();
    assert_eq!(stage.way.data().await, (TAG, b"patient".into()));
}

/// A stage whose channel has just fallen asleep.
async fn asleep() -> Stage {
    let mut stage = Stage::open().await;
    let opened_at = Instant::now();
    assert!(!stage.turned().await);
    let took = opened_at.elapsed();
    assert!(took >= 9 * SECOND && took <= 12 * SECOND, "{took:?}");
    stage
}

impl Stage {
    /// How many probes the client has sent.
    fn probes(&self) -> u64 {
        self.session.stats().probes_sent
    }

    /// Datagrams go by QUIC, and then raw again.
    async fn woken(&mut self) {
        assert!(self.turned().await);
        self.quiet().await;
        self.session.send_datagram("raw".into()).unwrap();
        assert_eq!(self.way.data().await, (TAG, b"raw".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn without_datagrams_it_sleeps_and_asks_nobody_for_anything() {
    let mut stage = asleep().await;
    let before = (stage.probes(), stage.guest.pings.seen.lock().unwrap().len());
    // Two a second: each answer here has a cookie of its own.
    assert!((18..26).contains(&before.0), "{before:?}");
    assert_eq!((stage.session.stats().raw_open, stage.session.stats().raw_max_bytes), (false, None));
    stage.quiet().await;
    sleep(60 * SECOND).await;
    assert_eq!(stage.guest.pings.seen.lock().unwrap().len(), before.1, "asked by QUIC because of it");
    // Streams are none of its business.
    let mut send = stage.session.open_uni().await.unwrap();
    for _ in 0..5 {
        send.write_all(b"x").await.unwrap();
        sleep(SECOND).await;
    }
    assert_eq!(stage.probes(), before.0);
    assert!(stage.way.is_quiet());
    assert_eq!(stage.session.stats().reconnects, 0);
}

#[tokio::test(start_paused = true)]
async fn a_datagram_sent_wakes_it_and_goes_by_quic() {
    let mut stage = asleep().await;
    for way in 0..4 {
        stage.quiet().await;
        let (probes, woken_at) = (stage.probes(), Instant::now());
        match way {
            0 => stage.session.send_datagram("by QUIC".into()).unwrap(),
            1 => stage.session.send_datagram_wait("by QUIC".into()).await.unwrap(),
            2 => assert_eq!(stage.session.send_train(b"by QUIC", 7).unwrap(), 1),
            _ => stage.session.send_datagram("".into()).unwrap(),
        }
        assert_eq!(stage.datagram().await, if way == 3 { "" } else { "by QUIC" });
        let (tag, _, cookie) = stage.way.probe().await;
        assert_eq!((tag, cookie == [0; 8]), (TAG, false));
        assert!(stage.turned().await);
        assert!(woken_at.elapsed() < SECOND / 2, "{:?}", woken_at.elapsed());
        assert_eq!(stage.probes() - probes, 2, "one, and one with the new cookie");
        stage.session.send_datagram("raw".into()).unwrap();
        assert_eq!(stage.way.data().await, (TAG, b"raw".into()));
        assert!(!stage.turned().await);
    }
    // What does not fit the channel is nothing for it.
    let probes = stage.probes();
    stage.session.send_datagram(vec![1; 5000].into()).unwrap();
    soon(stage.guest.connection.accept_uni()).await.unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(stage.probes(), probes);
}

#[tokio::test(start_paused = true)]
async fn a_datagram_received_wakes_it() {
    let mut stage = asleep().await;
    stage.guest.connection.send_datagram(Bytes::from_static(b"there")).unwrap();
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "there");
    stage.woken().await;
    assert!(!stage.turned().await);
    // One that the relay sent raw because it does not know yet.
    stage.way.send(&stage.data(TAG, b"raw")).await;
    assert_eq!(soon(stage.session.recv_datagram()).await.unwrap(), "raw");
    stage.woken().await;
    assert!(!stage.turned().await);
    // By a stream: only if it would have fitted.
    for (bytes, wakes) in [(20_000, false), (1100, true)] {
        let probes = stage.probes();
        let mut send = stage.guest.connection.open_uni().await.unwrap();
        send.write_all(&[vec![1], vec![7; bytes]].concat()).await.unwrap();
        send.finish().unwrap();
        assert_eq!(soon(stage.session.recv_datagram()).await.unwrap().len(), bytes);
        sleep(SECOND).await;
        assert_eq!(stage.probes() > probes, wakes, "{bytes}");
    }
    stage.woken().await;
}

#[tokio::test(start_paused = true)]
async fn traffic_of_either_kind_and_direction_keeps_it_awake() {
    for kind in 0..3 {
        let mut stage = Stage::open().await;
        for _ in 0..5 {
            sleep(8 * SECOND).await;
            match kind {
                0 => stage.session.send_datagram("raw".into()).unwrap(),
                1 => stage.way.send(&stage.data(TAG, b"raw")).await,
                _ => stage.guest.connection.send_datagram(Bytes::from_static(b"by QUIC")).unwrap(),
            }
        }
        sleep(8 * SECOND).await;
        assert!(stage.session.stats().raw_open, "kind {kind}");
        assert!(stage.probes() >= 47, "{}", stage.probes());
        while let Ok(event) = tokio::time::timeout(Duration::ZERO, stage.events.recv()).await {
            assert!(!matches!(event, Some(Event::RawChannel { .. })), "kind {kind}");
        }
        assert!(!stage.turned().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_never_answered_sleeps_too() {
    let mut stage = Stage::new().await;
    stage.guest.say(limits(1200, 1190)).await;
    stage.guest.say(named(TAG.as_bytes())).await;
    sleep(40 * SECOND).await;
    let probes = stage.probes();
    assert!((29..=32).contains(&probes), "{probes}");
    sleep(60 * SECOND).await;
    assert_eq!(stage.probes(), probes);
    stage.way.answers.store(true, Relaxed);
    stage.session.send_datagram("by QUIC".into()).unwrap();
    assert_eq!(stage.datagram().await, "by QUIC");
    stage.woken().await;
}

#[tokio::test(start_paused = true)]
async fn asleep_it_takes_a_new_tag_and_a_new_address_and_may_lose_its_connection() {
    // A new tag: the other side is new, so something is about to happen.
    let mut stage = asleep().await;
    stage.guest.say(named(OTHER.as_bytes())).await;
    assert!(stage.turned().await);
    stage.session.send_datagram("raw".into()).unwrap();
    assert_eq!(stage.way.data().await, (OTHER, b"raw".into()));
    assert!(!stage.turned().await);

    // A new address: none, until there is something to send from there.
    stage.quiet().await;
    let (before, probes) = (*stage.way.client.lock().unwrap(), stage.probes());
    stage.session.rebind().unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(stage.probes(), probes);
    stage.session.send_datagram("by QUIC".into()).unwrap();
    assert_eq!(stage.datagram().await, "by QUIC");
    stage.way.probe().await;
    assert_ne!(*stage.way.client.lock().unwrap(), before);
    assert!(stage.turned().await);
    assert!(!stage.turned().await);

    // A new connection.
    stage.guest.drop_with(CloseCode::Internal.number().into());
    let mut next = offered(&stage.fake).await;
    next.say(limits(1200, 1190)).await;
    next.say(named(TAG.as_bytes())).await;
    assert!(stage.turned().await);
    stage.session.send_datagram("raw".into()).unwrap();
    assert_eq!(stage.way.data().await, (TAG, b"raw".into()));
}

/// The ping that a silent channel sends is one of those that are counted, and hurries nothing: they are a second apart.
#[tokio::test(start_paused = true)]
async fn a_silent_relay_is_given_up_no_sooner_for_the_channel() {
    for busy in [false, true] {
        let stage = Stage::new().await;
        // Out of step with the other pings.
        sleep(SECOND / 2).await;
        let stage = stage.opened().await;
        sleep(3 * SECOND).await;
        let pings = stage.guest.pings.clone();
        stage.guest.ignore_pings();
        stage.way.answers.store(false, Relaxed);
        let before = pings.seen.lock().unwrap().len();
        let streaming = async {
            if busy {
                let mut send = stage.session.open_uni().await.unwrap();
                while send.write_all(b"x").await.is_ok() {
                    sleep(SECOND / 10).await;
                }
            }
        };
        let pinged = async {
            let mut times = Vec::new();
            while times.len() < 3 {
                if pings.seen.lock().unwrap().len() > before + times.len() {
                    times.push(Instant::now());
                }
                sleep(SECOND / 100).await;
            }
            times
        };
        let times = tokio::select! {
            times = pinged => times,
            () = async { streaming.await; std::future::pending().await } => unreachable!(),
        };
        for two in times.windows(2) {
            let apart = two[1] - two[0];
            assert!(apart >= SECOND * 9 / 10 && apart <= SECOND * 11 / 10, "{apart:?}, busy {busy}");
        }
        // And then another connection is made.
        stage.fake.hello().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_to_a_relay_without_a_channel_is_told() {
    let mut stage = Stage::open().await;
    let away = Fake::new(&stage.pair);
    let migrate = Migrate { relays: vec![away.info()], deadline_ms: 30_000 };
    stage.guest.say(RelayMessage::Migrate(migrate)).await;
    let next = away.guest().await;
    assert!(!stage.turned().await);
    stage.session.send_datagram("by QUIC".into()).unwrap();
    assert_eq!(soon(next.connection.read_datagram()).await.unwrap(), "by QUIC");
}

/// What never stops coming and is not QUIC holds up neither QUIC nor other tasks.
#[tokio::test]
async fn a_flood_of_nonsense_starves_nobody() {
    let stage = Stage::with(JoinSet::new()).await.opened().await;
    let flood = async {
        loop {
            stage.way.send_train(&[0x3f; 60 * 1000], 1000);
            tokio::task::yield_now().await;
        }
    };
    let talk = async {
        for number in 0..200u8 {
            // Lost when the socket has no room; not when it is never read.
            loop {
                stage.guest.connection.send_datagram(vec![number].into()).unwrap();
                let got =
                    tokio::time::timeout(Duration::from_millis(20), stage.session.recv_datagram()).await;
                if got.is_ok() {
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = talk => {}
        () = flood => unreachable!(),
        () = sleep(60 * SECOND) => panic!("starved"),
    }
    assert!(stage.session.stats().raw_dropped_malformed > 1000);
}
