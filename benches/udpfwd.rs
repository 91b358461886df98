//! The floor that relays are compared with: a plain UDP forwarder, GRO in, GSO out, many pairs, no crypto, no limits.
//!
//! ```text
//! cargo run --release --example udpfwd -- 127.0.0.1:9999
//! ```
//!
//! A client registers with one datagram, `0x01` and the number of its pair (u32, big-endian); the two that name
//! one pair are joined. Everything else that either of them sends goes to the other.

use std::{
    collections::HashMap,
    env,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    process::ExitCode,
};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};

/// As much as the relay asks for.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// The most that one receive call returns in one buffer.
const MAX_TRAIN_BYTES: usize = 64 * 1024;

fn main() -> ExitCode {
    let Some(addr) = env::args().nth(1).and_then(|addr| addr.parse().ok()) else {
        return ExitCode::from(64);
    };
    match forward(addr) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(74),
    }
}

fn forward(addr: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&addr.into())?;
    let socket = UdpSocket::from(socket);
    let state = UdpSocketState::new((&socket).into())?;

    let mut buffers = vec![vec![0_u8; MAX_TRAIN_BYTES]; BATCH_SIZE];
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let mut pairs = Pairs::default();
    loop {
        let mut slices: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let received = match state.recv((&socket).into(), &mut slices, &mut metas) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&socket, PollFlags::IN)], None)?;
                continue;
            }
            // What a client's closed port answers is nothing that concerns the others.
            Err(_) => continue,
        };
        for (meta, buffer) in metas.iter().zip(&buffers).take(received) {
            let contents = buffer.get(..meta.len).unwrap_or_default();
            if let [1, pair @ ..] = contents
                && let Ok(pair) = <[u8; 4]>::try_from(pair)
            {
                pairs.register(pair, meta.addr);
            } else if let Some(&destination) = pairs.routes.get(&meta.addr) {
                let segment_size = (meta.stride < meta.len).then_some(meta.stride);
                let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
                // What cannot be sent is lost, as on any network.
                let _ = state.send((&socket).into(), &transmit);
            }
        }
    }
}

/// Who is joined with whom.
#[derive(Default)]
struct Pairs {
    waiting: HashMap<[u8; 4], SocketAddr>,
    routes: HashMap<SocketAddr, SocketAddr>,
}

impl Pairs {
    fn register(&mut self, pair: [u8; 4], addr: SocketAddr) {
        match self.waiting.remove(&pair) {
            Some(other) if other != addr => {
                self.routes.insert(other, addr);
                self.routes.insert(addr, other);
            }
            _ => {
                self.waiting.insert(pair, addr);
            }
        }
    }
}
