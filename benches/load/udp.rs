//! A client with a UDP socket of its own: of the plain forwarder, and of a TURN server.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::bail;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket, time::timeout};

use super::lanes::{self, Lane, Load, PLAIN, STAMPED_BYTES, longest_train};

/// A load that shares one core sends a while before it receives; this is what arrives meanwhile.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How long the forwarder may take before a client registers again.
const REGISTER_TIMEOUT: Duration = Duration::from_millis(200);
const REGISTER_TRIES: usize = 10;

/// A socket, and what goes before each payload.
pub struct Client {
    socket: Arc<UdpSocket>,
    state: Arc<UdpSocketState>,
    relay: SocketAddr,
    header_len: usize,
    /// Of one packet: header and payload.
    packet_len: usize,
    /// Equal packets one after the other, as many as go at once.
    train: Mutex<Vec<u8>>,
}

impl Client {
    /// Of a socket that the relay knows.
    pub fn new(
        socket: Arc<UdpSocket>,
        state: Arc<UdpSocketState>,
        relay: SocketAddr,
        header: &[u8],
        size: usize,
    ) -> Self {
        let packet = [header, &vec![PLAIN; size]].concat();
        let most = longest_train(size).min(state.max_gso_segments());
        Self {
            socket,
            state,
            relay,
            header_len: header.len(),
            packet_len: packet.len(),
            train: Mutex::new(packet.repeat(most)),
        }
    }

    /// Sends `count` packets to the relay in one call, the first with a stamp. Answers how many have gone.
    pub fn send(&self, stamp: Option<[u8; STAMPED_BYTES]>, count: u64) -> u64 {
        let mut train = self.train.lock().unwrap_or_else(PoisonError::into_inner);
        self.stamp(&mut train, stamp.unwrap_or([PLAIN; STAMPED_BYTES]));
        let wanted = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(self.packet_len);
        let contents = train.get(..wanted).unwrap_or(&train);
        let transmit = Transmit {
            destination: self.relay,
            ecn: None,
            contents,
            segment_size: (contents.len() > self.packet_len).then_some(self.packet_len),
            src_ip: None,
        };
        match self.state.try_send((&*self.socket).into(), &transmit) {
            Ok(()) => (contents.len() / self.packet_len) as u64,
            Err(_) => 0,
        }
    }

    fn stamp(&self, train: &mut [u8], stamp: [u8; STAMPED_BYTES]) {
        if let Some(first) = train.get_mut(self.header_len..).and_then(<[u8]>::first_chunk_mut) {
            *first = stamp;
        }
    }

    /// Takes what arrives, for ever.
    pub async fn receive(
        &self,
        load: &Load,
        lane: &Lane,
        role: usize,
        buffers: &Mutex<Buffers>,
    ) -> io::Result<()> {
        loop {
            let handled = self.socket.async_io(Interest::READABLE, || {
                let mut buffers = buffers.lock().unwrap_or_else(PoisonError::into_inner);
                buffers.receive(self, load, lane, role)
            });
            match handled.await {
                // What a closed port answers is no end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                other => other?,
            }
        }
    }
}

/// Where packets arrive; one for all clients, which use it one after the other.
pub struct Buffers {
    bytes: Vec<Vec<u8>>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl Buffers {
    pub fn new() -> Self {
        Self { bytes: vec![vec![0; 64 * 1024]; BATCH_SIZE], metas: [RecvMeta::default(); BATCH_SIZE] }
    }

    fn receive(&mut self, client: &Client, load: &Load, lane: &Lane, role: usize) -> io::Result<()> {
        let mut slices: Vec<_> = self.bytes.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let received = client.state.recv((&*client.socket).into(), &mut slices, &mut self.metas)?;
        for (meta, buffer) in self.metas.iter().zip(&self.bytes).take(received) {
            let packets = buffer.get(..meta.len).unwrap_or_default().chunks(meta.stride.max(1));
            // Of another length: a late answer to what was asked at set-up.
            let ours = packets.filter(|packet| packet.len() == client.packet_len);
            load.arrived(lane, role, ours.filter_map(|packet| packet.get(client.header_len..)));
        }
        Ok(())
    }
}

/// A socket that is not yet a client.
pub fn bind() -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Makes a client of a socket that the relay knows.
pub fn client(socket: UdpSocket, relay: SocketAddr, header: &[u8], size: usize) -> io::Result<Client> {
    let state = UdpSocketState::new((&socket).into())?;
    Ok(Client::new(Arc::new(socket), Arc::new(state), relay, header, size))
}

/// A pair of the plain forwarder's clients.
pub async fn floor_pair(relay: SocketAddr, pair: u32, size: usize) -> anyhow::Result<Lane> {
    let sockets = [UdpSocket::from_std(bind()?)?, UdpSocket::from_std(bind()?)?];
    let registration = [&[1][..], &pair.to_be_bytes()].concat();
    for _ in 0..REGISTER_TRIES {
        for socket in &sockets {
            socket.send_to(&registration, relay).await?;
        }
        // Whoever gets the other's greeting knows that they have been joined.
        let [device, peer] = &sockets;
        device.send_to(b"?", relay).await?;
        if timeout(REGISTER_TIMEOUT, peer.recv_from(&mut [0; 16])).await.is_ok() {
            let [device, peer] = sockets;
            return Ok(Lane([
                lanes::Client::Udp(client(device, relay, &[], size)?),
                lanes::Client::Udp(client(peer, relay, &[], size)?),
            ]));
        }
    }
    bail!("the forwarder at {relay} does not answer")
}

/// Starts everything that receives, for clients with a UDP socket.
pub fn start(load: &Arc<Load>) {
    let buffers = Arc::new(Mutex::new(Buffers::new()));
    for index in 0..load.lanes.len() {
        for role in 0..2 {
            tokio::spawn(receive(load.clone(), index, role, buffers.clone()));
        }
    }
}

async fn receive(load: Arc<Load>, index: usize, role: usize, buffers: Arc<Mutex<Buffers>>) {
    let Some(lane) = load.lanes.get(index) else { return };
    let Some(lanes::Client::Udp(client)) = lane.0.get(role) else { return };
    // An error ends it, and shows as loss.
    let _ = client.receive(&load, lane, role, &buffers).await;
}
