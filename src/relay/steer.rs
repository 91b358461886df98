//! The relay's UDP sockets: one for each shard, on one port, and a BPF program that tells the kernel whose a
//! packet is.
//!
//! Every packet says which shard it is for: the first byte of its destination connection ID, or of its raw
//! channel's tag. So a client that moves to another address, and so to another hash, stays with its shard.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

/// What the kernel may hold for one socket while its thread is busy. Where the system allows less
/// (`net.core.rmem_max`), it takes what it allows.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Where the byte that names the shard lies in a packet with a long header, behind flags, version and length.
pub(super) const LONG_HEADER_SHARD_AT: usize = 6;
/// The same in a packet with a short header, and in one of the raw channel, behind the first byte.
pub(super) const SHORT_HEADER_SHARD_AT: usize = 1;
/// The bit of the first byte that only long headers have.
pub(super) const LONG_HEADER_BIT: u8 = 0x80;

/// Sockets that share a port, in the order of their shards.
#[derive(Debug)]
pub(super) struct Sockets {
    pub sockets: Vec<UdpSocket>,
    /// Why there is one socket where more were wanted.
    pub refused: Option<io::Error>,
}

/// Tells the kernel to choose among so many sockets. Must be called on the first of them, before it is bound.
pub(super) type Steer = fn(&Socket, u8) -> io::Result<()>;

/// Binds `shards` sockets to `addr`; one, where the kernel does not steer.
///
/// # Errors
/// When the address cannot be had: it is not this machine's, or another socket has it.
pub(super) fn bind(addr: SocketAddr, shards: u8, steer: Steer) -> io::Result<Sockets> {
    if shards <= 1 {
        return Ok(Sockets { sockets: vec![bind_one(addr, |_| Ok(()))?], refused: None });
    }
    // Sockets that share a port would also share it with another relay's. One that does not share finds out.
    let addr = bind_one(addr, |_| Ok(()))?.local_addr()?;
    let first = bind_one(addr, |socket| {
        share_port(socket)?;
        steer(socket, shards)
    });
    let first = match first {
        Ok(first) => first,
        Err(error) => {
            return Ok(Sockets { sockets: vec![bind_one(addr, |_| Ok(()))?], refused: Some(error) });
        }
    };
    let mut sockets = vec![first];
    while sockets.len() < usize::from(shards) {
        sockets.push(bind_one(addr, share_port)?);
    }
    Ok(Sockets { sockets, refused: None })
}

fn bind_one(addr: SocketAddr, prepare: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    prepare(&socket)?;
    // Fewer bytes than asked for are no reason not to start.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

#[cfg(unix)]
fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

#[cfg(not(unix))]
fn share_port(_: &Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Attaches the program that reads the shard from the packet.
#[cfg(target_os = "linux")]
pub(super) fn by_packet(socket: &Socket, shards: u8) -> io::Result<()> {
    use nix::{
        libc,
        sys::socket::{setsockopt, sockopt::AttachReusePortCbpf},
    };
    let mut program = program(shards).map(|[code, jt, jf, k]| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    });
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(socket, AttachReusePortCbpf, &program).map_err(io::Error::from)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn by_packet(_: &Socket, _: u8) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// In words: the byte at 6 if the first byte's high bit is set, else the byte at 1, modulo the number of
/// sockets. A packet too short for that ends the program, and goes to the first socket.
#[cfg(target_os = "linux")]
fn program(shards: u8) -> [[u32; 4]; 7] {
    // Opcodes of classic BPF, linux/bpf_common.h: class, size or operation, mode or source.
    const LOAD_BYTE_AT: u32 = 0x30;
    const JUMP_IF_BITS: u32 = 0x45;
    const JUMP: u32 = 0x05;
    const MODULO: u32 = 0x94;
    const RETURN_ACCUMULATOR: u32 = 0x16;
    [
        [LOAD_BYTE_AT, 0, 0, 0],
        [JUMP_IF_BITS, 0, 2, u32::from(LONG_HEADER_BIT)],
        [LOAD_BYTE_AT, 0, 0, LONG_HEADER_SHARD_AT as u32],
        [JUMP, 0, 0, 1],
        [LOAD_BYTE_AT, 0, 0, SHORT_HEADER_SHARD_AT as u32],
        [MODULO, 0, 0, u32::from(shards)],
        [RETURN_ACCUMULATOR, 0, 0, 0],
    ]
}

/// Which shard a packet is for, as the program has it.
pub(super) fn shard_of(packet: &[u8], shards: u8) -> u8 {
    let at = match packet.first() {
        Some(first) if first & LONG_HEADER_BIT != 0 => LONG_HEADER_SHARD_AT,
        _ => SHORT_HEADER_SHARD_AT,
    };
    packet.get(at).map_or(0, |byte| byte % shards.max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1:0";

    /// Sends packets of all kinds and sees at which socket each arrives.
    #[test]
    fn the_kernel_and_the_relay_agree_on_whose_a_packet_is() {
        for local in [LOOPBACK, "[::1]:0"] {
            const SHARDS: u8 = 5;
            let bound = bind(local.parse().unwrap(), SHARDS, by_packet).unwrap();
            assert!(bound.refused.is_none(), "{:?}", bound.refused);
            assert_eq!(bound.sockets.len(), usize::from(SHARDS));
            let addr = bound.sockets[0].local_addr().unwrap();
            for socket in &bound.sockets {
                assert_eq!(socket.local_addr().unwrap(), addr);
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            }
            let mut packets = vec![vec![0x40], vec![0xc0, 0, 0, 0, 1, 8], vec![]];
            for byte in 0..=255 {
                packets.push(vec![0x40, byte, 9, 9]);
                packets.push(vec![0x20, byte, 1, 2, 3, 4, 5, 6, 7]);
                packets.push(vec![0xc3, 0, 0, 0, 1, 8, byte, 1, 2, 3]);
            }
            for packet in packets {
                // A port of its own each time: the hash of the addresses would choose another socket.
                let client =
                    UdpSocket::bind(local).and_then(|c| c.send_to(&packet, addr).map(|_| c)).unwrap();
                let expected = shard_of(&packet, SHARDS);
                let mut buffer = [0; 64];
                let (len, from) = bound.sockets[usize::from(expected)].recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], from), (&packet[..], client.local_addr().unwrap()));
            }
        }
    }

    #[test]
    fn a_kernel_that_does_not_steer_leaves_one_socket_and_says_so() {
        let refuse: Steer = |_, _| Err(io::ErrorKind::PermissionDenied.into());
        let bound = bind(LOOPBACK.parse().unwrap(), 4, refuse).unwrap();
        assert_eq!(bound.sockets.len(), 1);
        assert_eq!(bound.refused.unwrap().kind(), io::ErrorKind::PermissionDenied);
        // It has the port for itself.
        let addr = bound.sockets[0].local_addr().unwrap();
        assert_eq!(bind(addr, 4, by_packet).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn two_relays_never_share_a_port() {
        for (first, second) in [(1, 1), (1, 3), (3, 1), (3, 3)] {
            let bound = bind(LOOPBACK.parse().unwrap(), first, by_packet).unwrap();
            let addr = bound.sockets[0].local_addr().unwrap();
            let error = bind(addr, second, by_packet).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{first} and {second} shards");
        }
    }

    #[test]
    fn short_packets_have_a_shard_too() {
        assert_eq!(shard_of(&[], 4), 0);
        assert_eq!(shard_of(&[0x40], 4), 0);
        assert_eq!(shard_of(&[0xc0, 1, 2, 3, 4, 5], 4), 0);
        assert_eq!(shard_of(&[0xc0, 1, 2, 3, 4, 5, 7], 4), 3);
        assert_eq!(shard_of(&[0x40, 7], 4), 3);
        assert_eq!(shard_of(&[0x40, 7], 0), 0);
    }
}
