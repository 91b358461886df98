//! The TLS session of one connection, as quinn sees it: rustls for the length of the handshake, and afterwards no
//! more than a connection still needs.
//!
//! A finished handshake leaves some five kilobytes behind in rustls: transcript, keys of a record layer that QUIC
//! does not have, buffers. All that is asked for later is the exporter's value for the proof, which is taken at
//! once, and packet keys for key updates, which are derived when the first update comes.

use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use quinn::{ConnectionId, Side, TransportErrorCode, crypto, crypto::rustls::QuicServerConfig};
use quinn_proto::{TransportError, transport_parameters::TransportParameters};
use rustls::quic::{Connection, KeyChange, PacketKeySet, Secrets, ServerConnection, Suite, Version};
use zeroize::Zeroizing;

use crate::{
    quic::acks,
    wire::{SpkiPin, proof::EXPORTER_LABEL},
};

/// TLS alert: a handshake message where there can be none (RFC 8446, section 6).
const UNEXPECTED_MESSAGE: u8 = 10;

/// Makes the sessions of all endpoints.
pub(super) struct ServerCrypto {
    /// For what is the same for all connections.
    quic: QuicServerConfig,
    /// What the next connection is shown.
    shown: ArcSwap<Shown>,
    initial: Suite,
}

/// A certificate with all that TLS does around it.
pub(super) struct Shown {
    pub tls: Arc<rustls::ServerConfig>,
    /// The pin of the certificate's key.
    pub spki: SpkiPin,
}

impl ServerCrypto {
    /// `None` when the provider lacks TLS_AES_128_GCM_SHA256, which protects every connection's first packets.
    pub fn new(shown: Shown) -> Option<Self> {
        let initial = shown.tls.crypto_provider().cipher_suites.iter().find_map(|suite| {
            let usable = suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
            suite.tls13().filter(|_| usable)?.quic_suite()
        })?;
        let quic = QuicServerConfig::try_from(shown.tls.clone()).ok()?;
        Some(Self { quic, shown: ArcSwap::from_pointee(shown), initial })
    }

    /// From the next connection on, another certificate. Those that are there keep what they were shown.
    pub fn show(&self, shown: Shown) {
        self.shown.store(Arc::new(shown));
    }

    /// The pin of what the next connection is shown.
    pub fn spki(&self) -> SpkiPin {
        self.shown.load().spki
    }
}

impl crypto::ServerConfig for ServerCrypto {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<crypto::Keys, crypto::UnsupportedVersion> {
        self.quic.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quic.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        // Whatever else there is has been refused by `initial_keys`.
        let version = if version == 1 { Version::V1 } else { Version::V1Draft };
        let mut encoded = Vec::with_capacity(256);
        params.write(&mut encoded);
        // It fails for settings without TLS 1.3, of which there are none here.
        let shown = self.shown.load();
        let tls = ServerConnection::new(shown.tls.clone(), version, encoded).ok();
        let tls = tls.map(|tls| Box::new(Connection::Server(tls)));
        let (initial, spki) = (self.initial, shown.spki);
        Box::new(Session { version, initial, spki, tls, exported: None, updates: None })
    }
}

struct Session {
    version: Version,
    initial: Suite,
    /// Of the certificate that this connection was shown.
    spki: SpkiPin,
    /// Until the handshake is over.
    tls: Option<Box<Connection>>,
    /// From then on, if rustls had it to give: the exporter's value for [`EXPORTER_LABEL`] without a context.
    exported: Option<Zeroizing<[u8; 32]>>,
    updates: Option<Updates>,
}

impl Session {
    /// Takes what will still be asked for, and lets go of the rest.
    fn settle(&mut self) {
        if let Some(tls) = self.tls.take_if(|tls| !tls.is_handshaking()) {
            let output = Zeroizing::new([0; 32]);
            self.exported = tls.export_keying_material(output, EXPORTER_LABEL, Some(&[])).ok();
        }
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, _side: Side) -> crypto::Keys {
        keys(self.initial.keys(dst_cid, rustls::Side::Server, self.version))
    }

    /// The [`SpkiPin`] of the certificate that was shown.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.spki))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn crypto::HeaderKey>, Box<dyn crypto::PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let Some(tls) = &mut self.tls else {
            // A client has nothing to say any more: QUIC updates keys in its own way, and we ask for no certificate.
            return Err(refused(TransportErrorCode::crypto(UNEXPECTED_MESSAGE), "the handshake is over"));
        };
        match tls.read_hs(buf) {
            // There is no handshake data that anybody waits for.
            Ok(()) => Ok(false),
            Err(error) => {
                let code = tls.alert().map(|alert| TransportErrorCode::crypto(alert.into()));
                Err(refused(code.unwrap_or(TransportErrorCode::PROTOCOL_VIOLATION), error.to_string()))
            }
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(received) = self.tls.as_ref().and_then(|tls| tls.quic_transport_parameters()) else {
            return Ok(None);
        };
        let patient = acks::patient(received);
        let mut received = patient.as_deref().unwrap_or(received);
        Ok(Some(TransportParameters::read(Side::Server, &mut received)?))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<crypto::Keys> {
        let change = self.tls.as_mut()?.write_hs(buf);
        let changed = match change {
            Some(KeyChange::Handshake { keys }) => Some(keys),
            Some(KeyChange::OneRtt { keys, next }) => {
                self.updates = Some(Updates::Next(next));
                Some(keys)
            }
            None => {
                self.settle();
                None
            }
        };
        changed.map(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<crypto::KeyPair<Box<dyn crypto::PacketKey>>> {
        let secrets = match self.updates.take()? {
            Updates::Next(secrets) => secrets,
            Updates::After(generation) => generation.following(),
        };
        let generation = Arc::new(Generation { secrets, keys: OnceLock::new() });
        self.updates = Some(Updates::After(generation.clone()));
        Some(crypto::KeyPair {
            local: Box::new(UpdatedKey { generation: generation.clone(), of: |keys| &keys.local }),
            remote: Box::new(UpdatedKey { generation, of: |keys| &keys.remote }),
        })
    }

    fn is_valid_retry(&self, _orig_dst_cid: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        // Only clients are sent Retry packets.
        false
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), crypto::ExportKeyingMaterialError> {
        let failed = crypto::ExportKeyingMaterialError;
        if let Some(tls) = &self.tls {
            return tls.export_keying_material(output, label, Some(context)).map(drop).map_err(|_| failed);
        }
        match &self.exported {
            Some(exported)
                if label == EXPORTER_LABEL && context.is_empty() && output.len() == exported.len() =>
            {
                output.copy_from_slice(exported.as_slice());
                Ok(())
            }
            _ => Err(failed),
        }
    }
}

fn refused(code: TransportErrorCode, reason: impl Into<String>) -> TransportError {
    TransportError { code, frame: None, reason: reason.into() }
}

fn keys(keys: rustls::quic::Keys) -> crypto::Keys {
    crypto::Keys {
        header: crypto::KeyPair { local: Box::new(keys.local.header), remote: Box::new(keys.remote.header) },
        packet: crypto::KeyPair { local: Box::new(keys.local.packet), remote: Box::new(keys.remote.packet) },
    }
}

/// Where the keys of the next update come from.
enum Updates {
    /// These secrets.
    Next(Secrets),
    /// Those that follow on this generation's.
    After(Arc<Generation>),
}

/// The packet keys of one key phase.
///
/// quinn asks for the next phase's keys from the beginning, and a connection updates its keys after some 2^23
/// packets, which most never reach. So they are derived when the first packet needs them. RFC 9001, section 6.3,
/// allows that and says what it gives away: to whoever can time that packet, that a key phase has begun.
struct Generation {
    secrets: Secrets,
    keys: OnceLock<PacketKeySet>,
}

impl Generation {
    fn keys(&self) -> &PacketKeySet {
        self.keys.get_or_init(|| self.secrets.clone().next_packet_keys())
    }

    fn following(&self) -> Secrets {
        let mut secrets = self.secrets.clone();
        secrets.next_packet_keys();
        secrets
    }
}

/// One direction's key of a generation.
struct UpdatedKey {
    generation: Arc<Generation>,
    of: fn(&PacketKeySet) -> &Box<dyn rustls::quic::PacketKey>,
}

impl UpdatedKey {
    fn key(&self) -> &dyn crypto::PacketKey {
        (self.of)(self.generation.keys())
    }
}

impl crypto::PacketKey for UpdatedKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.key().encrypt(packet, buf, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), crypto::CryptoError> {
        self.key().decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key().tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key().confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key().integrity_limit()
    }
}

#[cfg(test)]
mod tests {
    use crypto::{PacketKey as _, Session as _};
    use rustls::quic::ClientConnection;

    use super::*;

    /// Both ends of a handshake.
    struct Ends {
        server: Session,
        client: Connection,
        /// The client's secrets for updates.
        client_updates: Option<Secrets>,
    }

    impl Ends {
        fn new() -> Self {
            let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(certified.cert.der().clone()).unwrap();
            let key = certified.signing_key.serialize_der().try_into().unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certified.cert.der().clone()], key)
                .unwrap();
            tls.alpn_protocols = vec![b"test".to_vec()];
            tls.send_tls13_tickets = 0;
            let mut client = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            client.alpn_protocols = vec![b"test".to_vec()];
            let tls = Arc::new(tls);
            let crypto = ServerCrypto::new(Shown { tls: tls.clone(), spki: SpkiPin([3; 32]) }).unwrap();
            let server = ServerConnection::new(tls, Version::V1, vec![1, 1, 7]).unwrap();
            let name = "localhost".try_into().unwrap();
            let client = ClientConnection::new(Arc::new(client), Version::V1, name, vec![1, 1, 5]).unwrap();
            Self {
                server: Session {
                    version: Version::V1,
                    initial: crypto.initial,
                    spki: crypto.spki(),
                    tls: Some(Box::new(Connection::Server(server))),
                    exported: None,
                    updates: None,
                },
                client: Connection::Client(client),
                client_updates: None,
            }
        }

        /// What the client has to say now.
        fn client_says(&mut self) -> Vec<u8> {
            let mut said = Vec::new();
            while let Some(change) = self.client.write_hs(&mut said) {
                if let KeyChange::OneRtt { next, .. } = change {
                    self.client_updates = Some(next);
                }
            }
            said
        }

        fn tell_server(&mut self, said: &[u8]) -> Result<Vec<Vec<u8>>, TransportError> {
            self.server.read_handshake(said)?;
            let mut answers = Vec::new();
            loop {
                let mut answer = Vec::new();
                let changed = self.server.write_handshake(&mut answer).is_some();
                let done = answer.is_empty() && !changed;
                answers.push(answer);
                if done {
                    return Ok(answers);
                }
            }
        }

        fn shake(&mut self) {
            let hello = self.client_says();
            for answer in self.tell_server(&hello).unwrap() {
                self.client.read_hs(&answer).unwrap();
                let said = self.client_says();
                if !said.is_empty() {
                    assert!(self.server.is_handshaking());
                    self.tell_server(&said).unwrap();
                }
            }
            assert!(!self.server.is_handshaking() && !self.client.is_handshaking());
        }
    }

    #[test]
    fn after_the_handshake_rustls_is_gone_and_the_exporter_is_not() {
        let mut ends = Ends::new();
        assert!(ends.server.is_handshaking());
        let mut early = [0; 32];
        assert!(ends.server.export_keying_material(&mut early, EXPORTER_LABEL, &[]).is_err());
        ends.shake();
        assert!(ends.server.tls.is_none());
        let theirs = ends.client.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).unwrap();
        let mut ours = [0; 32];
        ends.server.export_keying_material(&mut ours, EXPORTER_LABEL, &[]).unwrap();
        assert_eq!(ours, theirs);
        assert_ne!(ours, [0; 32]);
        // Nothing else is kept, and nothing is made up.
        for (label, context, len) in
            [(&b"other"[..], &b""[..], 32), (EXPORTER_LABEL, b"x", 32), (EXPORTER_LABEL, b"", 31)]
        {
            assert!(ends.server.export_keying_material(&mut vec![0; len], label, context).is_err());
        }
    }

    #[test]
    fn whatever_a_client_says_after_the_handshake_is_refused() {
        let mut ends = Ends::new();
        ends.shake();
        let error = ends.server.read_handshake(&[4, 0, 0, 0]).unwrap_err();
        assert_eq!(error.code, TransportErrorCode::crypto(UNEXPECTED_MESSAGE));
        assert!(ends.server.write_handshake(&mut Vec::new()).is_none());
    }

    #[test]
    fn nonsense_in_the_handshake_is_refused_with_the_alert_that_tls_has_for_it() {
        let mut ends = Ends::new();
        let error = ends.server.read_handshake(&[99, 0, 0, 1, 7]).unwrap_err();
        assert_eq!(u64::from(error.code) & !0xff, 0x100, "{error}");
    }

    #[test]
    fn each_key_update_is_the_one_that_the_client_makes() {
        let mut ends = Ends::new();
        ends.shake();
        for phase in 0..4_u64 {
            let ours = ends.server.next_1rtt_keys().unwrap();
            let theirs = ends.client_updates.as_mut().unwrap().next_packet_keys();
            let (header, text) = ([7; 5], [9; 40]);
            let tag_len = ours.local.tag_len();
            let mut packet = [&header[..], &text, &vec![0; tag_len]].concat();
            ours.local.encrypt(phase, &mut packet, header.len());
            assert_ne!(packet[5..45], text);
            let mut payload = BytesMut::from(&packet[5..]);
            theirs.remote.decrypt(phase, &header, &mut payload).unwrap();
            assert_eq!(payload[..], text);

            let mut packet = [&header[..], &text, &vec![0; tag_len]].concat();
            theirs.local.encrypt(phase, &mut packet, header.len());
            let mut payload = BytesMut::from(&packet[5..]);
            ours.remote.decrypt(phase, &header, &mut payload).unwrap();
            assert_eq!(payload[..], text);
            assert!(ours.remote.decrypt(phase, &header, &mut BytesMut::from(&packet[6..])).is_err());
            assert_eq!(ours.local.confidentiality_limit(), 1 << 23);
            assert_eq!(ours.remote.integrity_limit(), 1 << 52);
        }
    }

    #[test]
    fn keys_of_an_update_are_derived_when_it_comes() {
        let mut ends = Ends::new();
        ends.shake();
        let keys = ends.server.next_1rtt_keys().unwrap();
        let generation = match &ends.server.updates {
            Some(Updates::After(generation)) => generation.clone(),
            _ => panic!("no generation"),
        };
        assert!(generation.keys.get().is_none());
        let _ = keys.remote.decrypt(0, &[], &mut BytesMut::from(&[0; 32][..]));
        assert!(generation.keys.get().is_some());
    }
}
