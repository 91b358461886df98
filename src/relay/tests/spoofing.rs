//! R6.3: a client that writes others' addresses into its packets, and what is sent to those others.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, UdpSocket},
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
    /// Each has an IP address of its own.
    far_apart: bool,
    /// And how many bytes were sent in its name.
    victims: Mutex<Vec<(Arc<tokio::net::UdpSocket>, usize)>>,
}

impl Spoofing {
    fn new(far_apart: bool) -> Self {
        let io = UdpSocket::bind("127.0.0.1:0").unwrap();
        io.set_nonblocking(true).unwrap();
        let io = tokio::net::UdpSocket::from_std(io).unwrap();
        Self { io, spoofs: AtomicBool::new(false), far_apart, victims: Mutex::default() }
    }

    /// How many there are.
    fn victims(&self) -> usize {
        self.victims.lock().unwrap().len()
    }

    /// Waits until there is one of this number and something has come to it.
    async fn hears(&self, victim: usize) {
        let found = || self.victims.lock().unwrap().get(victim).map(|(victim, _)| victim.clone());
        let victim = loop {
            match found() {
                Some(victim) => break victim,
                // What sends is a task of this thread.
                None => tokio::task::yield_now().await,
            }
        };
        victim.peek(&mut [0]).await.unwrap();
    }

    /// Of each victim: the bytes that came, and those that were sent in its name.
    fn heard(&self) -> Vec<(usize, usize)> {
        let heard = |(victim, sent): &(Arc<tokio::net::UdpSocket>, usize)| {
            let mut buffer = [0; 2048];
            (std::iter::from_fn(|| victim.try_recv(&mut buffer).ok()).sum(), *sent)
        };
        self.victims.lock().unwrap().iter().map(heard).collect()
    }
}

impl AsyncUdpSocket for Spoofing {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = &transmit.destination.into();
        if self.spoofs.load(Ordering::Relaxed) {
            let mut victims = self.victims.lock().unwrap();
            let number = if self.far_apart { victims.len() as u8 } else { 0 };
            let victim = UdpSocket::bind((Ipv4Addr::new(127, 0, 1, number), 0))?;
            victim.set_nonblocking(true)?;
            socket2::SockRef::from(&victim).send_to(transmit.contents, to)?;
            let victim = Arc::new(tokio::net::UdpSocket::from_std(victim)?);
            victims.push((victim, transmit.contents.len()));
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
    let closed = |code| harness.metric(&format!("zrc_relay_connections_closed_total{{code=\"{code}\"}}"));
    // The latter on a machine that is slow indeed.
    let ended = || closed("RATE_LIMITED") + closed("AUTH_TIMEOUT");
    for (has_token, far_apart) in [(true, false), (false, false), (true, true), (false, true)] {
        for attempt in 1.. {
            assert!(attempt < 20, "nothing was ever withheld: {has_token} {far_apart}");
            let (withheld_before, ended_before) = (withheld(), ended());
            let is_withheld = || withheld() >= withheld_before + 5;
            let socket = Arc::new(Spoofing::new(far_apart));
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
            soon(async {
                while !is_withheld() && ended() == ended_before {
                    for _ in 0..16 {
                        let victim = socket.victims();
                        connection.send_datagram(Bytes::from_static(b"here")).unwrap();
                        // Each in its turn, so that each is answered. The last ones are not.
                        let _ = timeout(Duration::from_millis(10), socket.hears(victim)).await;
                    }
                }
            })
            .await;
            let heard = socket.heard();
            // A packet that is as large as its answer may be answered: one that looks for a larger MTU, or is sent again.
            let small = || heard.iter().filter(|(_, sent)| *sent < 400);
            assert!(small().all(|(bytes, _)| *bytes < 1500), "{heard:?}");
            assert!(heard.iter().all(|(bytes, sent)| *bytes < 1500.max(3 * sent + 1)), "{heard:?}");
            let whole = small().filter(|(bytes, _)| *bytes >= 1200).count();
            assert!(whole <= MAX_PATHS as usize, "{whole} of {heard:?}");
            if is_withheld() {
                assert!(whole >= 10, "{whole} of {heard:?}");
                break;
            }
        }
    }
}
