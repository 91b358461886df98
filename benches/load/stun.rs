//! STUN messages as a TURN client needs them: RFC 8489 with long-term credentials, RFC 8656; IPv4 only.

use std::net::{Ipv4Addr, SocketAddrV4};

use aws_lc_rs::hmac;
use md5::{Digest as _, Md5};

/// In every message.
const MAGIC_COOKIE: u32 = 0x2112_A442;
const HEADER_LEN: usize = 20;
const INTEGRITY_LEN: usize = 4 + 20;

/// Tells the answers to different questions apart.
pub type TransactionId = [u8; 12];

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Allocate = 0x003,
    ChannelBind = 0x009,
}

/// How a message is meant: its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Request,
    Success,
    Error,
}

mod attribute {
    pub(super) const USERNAME: u16 = 0x0006;
    pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(super) const ERROR_CODE: u16 = 0x0009;
    pub(super) const CHANNEL_NUMBER: u16 = 0x000C;
    pub(super) const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub(super) const REALM: u16 = 0x0014;
    pub(super) const NONCE: u16 = 0x0015;
    pub(super) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub(super) const REQUESTED_TRANSPORT: u16 = 0x0019;
}

/// Who asks, as the server wants it shown (RFC 8489, section 9.2).
#[derive(Debug, Clone)]
pub struct Credentials {
    username: String,
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: hmac::Key,
}

impl Credentials {
    /// With the realm and the nonce that the server's refusal named.
    pub fn new(username: &str, password: &str, realm: &[u8], nonce: &[u8]) -> Self {
        let key = Md5::new()
            .chain_update(username)
            .chain_update(b":")
            .chain_update(realm)
            .chain_update(b":")
            .chain_update(password)
            .finalize();
        Self {
            username: username.to_owned(),
            realm: realm.to_vec(),
            nonce: nonce.to_vec(),
            key: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key),
        }
    }
}

/// A request on its way to be written.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    pub fn new(method: Method, id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend((method as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(MAGIC_COOKIE.to_be_bytes());
        bytes.extend(id);
        Self { bytes }
    }

    /// Asks for a UDP relay.
    pub fn requested_transport_udp(self) -> Self {
        self.attribute(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
    }

    pub fn channel_number(self, channel: u16) -> Self {
        let [high, low] = channel.to_be_bytes();
        self.attribute(attribute::CHANNEL_NUMBER, &[high, low, 0, 0])
    }

    pub fn xor_peer_address(self, addr: SocketAddrV4) -> Self {
        let mut value = vec![0, 1];
        value.extend((addr.port() ^ (MAGIC_COOKIE >> 16) as u16).to_be_bytes());
        value.extend((u32::from(*addr.ip()) ^ MAGIC_COOKIE).to_be_bytes());
        self.attribute(attribute::XOR_PEER_ADDRESS, &value)
    }

    /// Finishes a request that nobody vouches for.
    pub fn unsigned(mut self) -> Vec<u8> {
        self.set_length(0);
        self.bytes
    }

    /// Finishes it with the credentials and their MAC.
    pub fn signed(self, credentials: &Credentials) -> Vec<u8> {
        let mut all = self
            .attribute(attribute::USERNAME, credentials.username.as_bytes())
            .attribute(attribute::REALM, &credentials.realm)
            .attribute(attribute::NONCE, &credentials.nonce);
        // The MAC covers a length that already counts it.
        all.set_length(INTEGRITY_LEN);
        let mac = hmac::sign(&credentials.key, &all.bytes);
        all.attribute(attribute::MESSAGE_INTEGRITY, mac.as_ref()).bytes
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend((value.len() as u16).to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn set_length(&mut self, more: usize) {
        let length = (self.bytes.len() - HEADER_LEN + more) as u16;
        if let Some(field) = self.bytes.get_mut(2..4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// A message that arrived.
#[derive(Debug)]
pub struct Message<'a> {
    pub class: Class,
    pub id: TransactionId,
    method: u16,
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None` when it is no STUN message.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, attributes) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [t0, t1, l0, l1, c0, c1, c2, c3, id @ ..] = *header;
        let kind = u16::from_be_bytes([t0, t1]);
        let well_formed = kind & 0xC000 == 0
            && u32::from_be_bytes([c0, c1, c2, c3]) == MAGIC_COOKIE
            && usize::from(u16::from_be_bytes([l0, l1])) == attributes.len();
        let class = match kind & 0x0110 {
            0x0000 => Class::Request,
            0x0100 => Class::Success,
            0x0110 => Class::Error,
            _ => return None,
        };
        well_formed.then_some(Self { class, id, method: kind & 0x3EEF, bytes })
    }

    pub fn is_of(&self, method: Method) -> bool {
        self.method == method as u16
    }

    /// 300 to 699, of an error.
    pub fn error_code(&self) -> Option<u16> {
        let [_, _, class, number, ..] = *self.value(attribute::ERROR_CODE)? else { return None };
        Some(u16::from(class & 7) * 100 + u16::from(number))
    }

    pub fn realm(&self) -> Option<&'a [u8]> {
        self.value(attribute::REALM)
    }

    pub fn nonce(&self) -> Option<&'a [u8]> {
        self.value(attribute::NONCE)
    }

    pub fn xor_relayed_address(&self) -> Option<SocketAddrV4> {
        let [0, 1, p0, p1, a, b, c, d] = *self.value(attribute::XOR_RELAYED_ADDRESS)? else { return None };
        let port = u16::from_be_bytes([p0, p1]) ^ (MAGIC_COOKIE >> 16) as u16;
        let ip = u32::from_be_bytes([a, b, c, d]) ^ MAGIC_COOKIE;
        Some(SocketAddrV4::new(Ipv4Addr::from(ip), port))
    }

    /// Whether whoever wrote it knows the password.
    pub fn is_signed_with(&self, credentials: &Credentials) -> bool {
        let Some((at, mac)) =
            self.attributes().find(|(_, kind, _)| *kind == attribute::MESSAGE_INTEGRITY).map(|a| (a.0, a.2))
        else {
            return false;
        };
        let mut covered = self.bytes.get(..at).unwrap_or_default().to_vec();
        let length = (at + INTEGRITY_LEN).saturating_sub(HEADER_LEN) as u16;
        if let Some(field) = covered.get_mut(2..4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        hmac::verify(&credentials.key, &covered, mac).is_ok()
    }

    fn value(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(_, other, _)| *other == kind).map(|(_, _, value)| value)
    }

    /// Where each begins, what it is, what it holds; up to the first that is cut short.
    fn attributes(&self) -> impl Iterator<Item = (usize, u16, &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        let mut at = HEADER_LEN;
        std::iter::from_fn(move || {
            let (&[k0, k1, l0, l1], rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
            let value = rest.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
            let here = at;
            at += 4 + value.len().next_multiple_of(4);
            Some((here, u16::from_be_bytes([k0, k1]), value))
        })
    }
}

/// What goes before a payload on a channel (RFC 8656, section 12.4). Over UDP nothing is padded.
pub fn channel_data_header(channel: u16, payload_len: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (channel.to_be_bytes(), payload_len.to_be_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769, section 2.4: a request with long-term authentication. Its user name and password need no
    /// preparation beyond what is written here.
    const SAMPLE: &str = "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382af\
        e382b90000001500\
        1c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014\
        f67024656dd64a3e02b8e0712e85c9a28ca89666";

    fn sample_credentials(nonce: &[u8]) -> Credentials {
        Credentials::new(
            "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}",
            "TheMatrIX",
            b"example.org",
            nonce,
        )
    }

    #[test]
    fn the_samples_of_rfc_5769_are_understood() {
        let bytes = hex::decode(SAMPLE).unwrap();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.class, Class::Request);
        assert_eq!(message.realm(), Some(&b"example.org"[..]));
        assert_eq!(message.nonce(), Some(&b"f//499k954d6OL34oL9FSTvy64sA"[..]));
        assert!(message.is_signed_with(&sample_credentials(b"")));
        let mut forged = bytes.clone();
        forged[10] ^= 1;
        assert!(!Message::parse(&forged).unwrap().is_signed_with(&sample_credentials(b"")));
    }

    #[test]
    fn a_request_is_what_it_says() {
        let credentials = sample_credentials(b"nonce");
        let addr = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 32_853);
        let bytes = Request::new(Method::ChannelBind, [7; 12])
            .channel_number(0x4000)
            .xor_peer_address(addr)
            .signed(&credentials);
        let message = Message::parse(&bytes).unwrap();
        assert!(message.is_of(Method::ChannelBind) && message.is_signed_with(&credentials));
        assert_eq!((message.class, message.id), (Class::Request, [7; 12]));
        // The mapped address of RFC 5769, section 2.2, is this one.
        assert_eq!(
            message.value(attribute::XOR_PEER_ADDRESS).unwrap(),
            hex::decode("0001a147e112a643").unwrap()
        );
        assert_eq!(message.value(attribute::CHANNEL_NUMBER), Some(&[0x40, 0, 0, 0][..]));
    }

    #[test]
    fn answers_are_read() {
        let mut success = Request::new(Method::Allocate, [1; 12])
            .attribute(attribute::XOR_RELAYED_ADDRESS, &hex::decode("0001a147e112a643").unwrap())
            .unsigned();
        success[0] = 1;
        let message = Message::parse(&success).unwrap();
        assert_eq!(message.class, Class::Success);
        assert_eq!(message.xor_relayed_address().unwrap().to_string(), "192.0.2.1:32853");

        let mut refusal = Request::new(Method::Allocate, [1; 12])
            .attribute(attribute::ERROR_CODE, &[0, 0, 4, 1, b'n', b'o'])
            .unsigned();
        (refusal[0], refusal[1]) = (1, 0x13);
        let message = Message::parse(&refusal).unwrap();
        assert_eq!((message.class, message.error_code()), (Class::Error, Some(401)));
        for cut in 0..refusal.len() {
            assert!(Message::parse(&refusal[..cut]).is_none());
        }
    }

    #[test]
    fn channel_data_has_number_and_length() {
        assert_eq!(channel_data_header(0x4001, 1200), [0x40, 1, 4, 0xB0]);
    }
}
