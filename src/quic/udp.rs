//! Sending and receiving on one UDP socket, with what the system offers to make it cheap.

use std::io;

use arc_swap::ArcSwap;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

/// What is known of a UDP socket: above all, how many packets the kernel takes at once.
///
/// A packet that the kernel finds wrong in itself (to port 0, from an address that is not this machine's, larger
/// than its device carries) looks like one that it cannot segment, and quinn-udp then segments no more. Whoever
/// sends from such an address, or spoofs it, must not slow down everybody else for ever: so what such an error has
/// taught is forgotten. A system that really cannot segment says so by another error, or takes the packet the
/// second time.
#[derive(Debug)]
pub(crate) struct Udp {
    state: ArcSwap<UdpSocketState>,
}

impl Udp {
    /// # Errors
    /// When the system refuses what QUIC needs of a socket.
    pub(crate) fn new<S>(socket: &S) -> io::Result<Self>
    where
        for<'a> &'a S: Into<quinn_udp::UdpSockRef<'a>>,
    {
        Ok(Self { state: ArcSwap::from_pointee(UdpSocketState::new(socket.into())?) })
    }

    /// Asks the kernel to hold so much of what arrives and of what leaves; it may allow less.
    pub(crate) fn ask_for_buffers<S>(&self, socket: &S, receive_bytes: usize, send_bytes: usize)
    where
        for<'a> &'a S: Into<quinn_udp::UdpSockRef<'a>>,
    {
        let state = self.state.load();
        // Who may not have as much has what the system gives.
        let _ = state.set_recv_buffer_size(socket.into(), receive_bytes);
        let _ = state.set_send_buffer_size(socket.into(), send_bytes);
    }

    /// Sends, all or nothing. The socket must be the one this was made of.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn send<S>(&self, socket: &S, transmit: &Transmit<'_>) -> io::Result<()>
    where
        for<'a> &'a S: Into<quinn_udp::UdpSockRef<'a>>,
    {
        let sent = self.state.load().try_send(socket.into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput)
            && let Ok(anew) = UdpSocketState::new(socket.into())
        {
            self.state.store(anew.into());
        }
        sent
    }

    /// As quinn wants it: whatever is wrong with a packet, it counts as sent and lost.
    ///
    /// # Errors
    /// That there is no room.
    pub(crate) fn send_or_lose<S>(&self, socket: &S, transmit: &Transmit<'_>) -> io::Result<()>
    where
        for<'a> &'a S: Into<quinn_udp::UdpSockRef<'a>>,
    {
        match self.send(socket, transmit) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::debug!(%error, "a packet could not be sent");
                Ok(())
            }
            sent => sent,
        }
    }

    /// Fills the buffers; how many.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn recv<S>(
        &self,
        socket: &S,
        buffers: &mut [io::IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize>
    where
        for<'a> &'a S: Into<quinn_udp::UdpSockRef<'a>>,
    {
        self.state.load().recv(socket.into(), buffers, metas)
    }

    /// How many packets the kernel takes at once; at least 1.
    pub(crate) fn max_send_segments(&self) -> usize {
        self.state.load().max_gso_segments().max(1)
    }

    /// How many packets a buffer must hold.
    pub(crate) fn max_receive_segments(&self) -> usize {
        self.state.load().gro_segments()
    }

    /// Whether the system may cut packets up on their way.
    pub(crate) fn may_fragment(&self) -> bool {
        self.state.load().may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// Anybody can have a relay answer such an address.
    #[test]
    fn packets_that_cannot_be_sent_do_not_end_segmentation() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = Udp::new(&socket).unwrap();
        let before = udp.max_send_segments();
        assert!(before > 1, "this kernel takes trains");
        let transmit = |destination: &str, src_ip: Option<&str>| Transmit {
            destination: destination.parse().unwrap(),
            ecn: None,
            contents: &[0x40; 100],
            segment_size: None,
            src_ip: src_ip.map(|ip| ip.parse().unwrap()),
        };
        for (destination, src_ip) in [
            ("127.0.0.1:0", None),
            ("127.0.0.1:9", Some("255.255.255.255")),
            ("127.0.0.1:9", Some("224.0.0.1")),
            ("127.0.0.1:9", Some("192.0.2.1")),
        ] {
            for _ in 0..2 {
                assert!(
                    udp.send(&socket, &transmit(destination, src_ip)).is_err(),
                    "{destination} {src_ip:?}"
                );
                assert_eq!(udp.max_send_segments(), before, "{destination} {src_ip:?}");
                udp.send_or_lose(&socket, &transmit(destination, src_ip)).unwrap();
                assert_eq!(udp.max_send_segments(), before, "{destination} {src_ip:?}");
            }
        }
    }
}
