//! R6.3: a client that writes others' addresses into its packets, and what is sent to those others.

use std::{
    io::{self, IoSliceMut},
    net::UdpSocket,
    pin::Pin,
    sync::{Mutex, atomic::AtomicBool},
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, EndpointConfig, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    raw::{Always, receive},
    *,
};
use crate::quic::moves::MAX_PATHS;

/// A socket that in time sends each datagram from another address, whose owner never says anything.
#[derive(Debug)]
struct Spoofing {
    io: tokio::net::UdpSocket,
    spoofs: AtomicBool,
    victims: Mutex<Vec<UdpSocket>>,
}

impl Spoofing {
    fn new() -> Self {
        let io = UdpSocket::bind("127.0.0.1:0").unwrap();
        io.set_nonblocking(true).unwrap();
        let io = tokio::net::UdpSocket::from_std(io).unwrap();
        Self { io, spoofs: AtomicBool::new(false), victims: Mutex::default() }
    }

    /// Of each victim: the bytes that came.
    fn came(&self) -> Vec<usize> {
        let came = |victim: &UdpSocket| {
            let mut buffer = [0; 2048];
            std::iter::from_fn(|| victim.recv(&mut buffer).ok()).sum()
        };
        self.victims.lock().unwrap().iter().map(came).collect()
    }
}

impl AsyncUdpSocket for Spoofing {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = &transmit.destination.into();
        if self.spoofs.load(Ordering::Relaxed) {
            let victim = UdpSocket::bind("127.0.0.1:0")?;
            victim.set_nonblocking(true)?;
            socket2::SockRef::from(&victim).send_to(transmit.contents, to)?;
            self.victims.lock().unwrap().push(victim);
        } else {
            // Loss, where the socket is full, is nothing new to QUIC.
            let _ = socket2::SockRef::from(&self.io).send_to(transmit.contents, to);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        ready!(receive(&self.io, cx, bufs, meta))?;
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }
}

/// Whether the looks at each connection, which close it, come before or after.
#[tokio::test]
async fn r6_3_addresses_that_a_connection_claims_get_few_datagrams_however_fast_it_changes_them() {
    let harness = Harness::start();
    let withheld = || harness.metric("zrc_relay_guard_withheld_datagrams_total{reason=\"restless\"}");
    let received =
        |reason| harness.metric(&format!("zrc_relay_dropped_datagrams_total{{reason=\"{reason}\"}}"));
    for (has_token, reason) in [(true, "no_peer"), (false, "unauthenticated")] {
        let before = withheld();
        for attempt in 1.. {
            assert!(attempt < 20, "nothing was ever withheld");
            let socket = Arc::new(Spoofing::new());
            let endpoint = Endpoint::new_with_abstract_socket(
                EndpointConfig::default(),
                None,
                socket.clone(),
                Arc::new(TokioRuntime),
            );
            let raw = harness.connect_on(endpoint.unwrap(), harness.addr(), |_| {}).await.unwrap();
            let connection = raw.connection.clone();
            let _held = match has_token {
                true => (raw.join(&harness.pair(), Role::Device).await.ok(), None),
                false => (None, Some(raw)),
            };
            socket.spoofs.store(true, Ordering::Relaxed);
            // Each in its turn, so that each is answered.
            let closed = harness.metric("zrc_relay_connections");
            let is_over = || withheld() >= before + 5 || harness.metric("zrc_relay_connections") < closed;
            soon(async {
                while !is_over() {
                    let so_far = received(reason);
                    connection.send_datagram(Bytes::from_static(b"here")).unwrap();
                    while received(reason) == so_far && !is_over() {
                        tokio::time::sleep(Duration::from_micros(100)).await;
                    }
                }
            })
            .await;
            let came = socket.came();
            let whole = came.iter().filter(|bytes| **bytes >= 1200).count();
            assert!((10..=MAX_PATHS as usize).contains(&whole), "{whole} of {came:?}");
            assert!(came.iter().all(|bytes| *bytes < 1500), "{came:?}");
            if withheld() >= before + 5 {
                break;
            }
        }
    }
}
