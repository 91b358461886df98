//! QUIC and TLS settings of the relay's side, and why they are what they are.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{hkdf, hmac};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Dir, IdleTimeout, TransportConfig, ValidationTokenConfig, VarInt,
};
use quinn_proto::{InvalidCid, RandomConnectionIdGenerator, crypto::HandshakeTokenKey};
use rustls::{
    CipherSuite,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use sha2::{Digest as _, Sha256};

use super::{
    StartError,
    handshake::{ServerCrypto, Shown},
};
use crate::{
    quic::{acks, congestion::RateBasedFactory, mtu},
    wire::{ALPN, SpkiPin},
};

/// A certificate chain, leaf first, and the leaf's private key.
#[derive(Debug)]
pub struct TlsIdentity {
    /// DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl TlsIdentity {
    /// The pin of the leaf's key.
    ///
    /// # Errors
    /// When there is no leaf, or it is not an X.509 certificate.
    pub fn spki(&self) -> Result<SpkiPin, rustls::Error> {
        let leaf = self.chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let parsed = rustls::server::ParsedCertificate::try_from(leaf)?;
        Ok(SpkiPin::of(&parsed.subject_public_key_info()))
    }
}

/// Streams of each kind that a client may have open at once, control stream aside.
pub(super) const MAX_STREAMS_PER_KIND: u32 = 32;
/// How many until it has used half as many, so also while its peer is not there: quinn keeps places for all from
/// the beginning, which 32 of each kind need 2.4 KiB more for than 12, and most clients use none.
pub(super) const FIRST_STREAMS_PER_KIND: u32 = 12;
/// Unread bytes a stream may hold. Fixed when the connection is accepted.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Unread bytes a connection may hold before its token is accepted: one Hello and one Prove.
const WINDOW_UNAUTHENTICATED_BYTES: u32 = 16 * 1024;
/// Afterwards. All streams full and unread must leave room for the control stream, or a client whose peer
/// has stopped reading could not even release its allocation.
const WINDOW_BYTES: u32 = 2 * MAX_STREAMS_PER_KIND * STREAM_WINDOW_BYTES + 64 * 1024;
/// Stream bytes sent to a client and not yet acknowledged, over all its streams.
const SEND_WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// quinn's bound on datagrams waiting to be sent; the forwarder keeps occupancy below its own, smaller one.
pub(super) const DATAGRAM_SEND_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How long an address counts as proven because it once was, for the one connection that each token is good for.
const TOKEN_LIFETIME: Duration = Duration::from_secs(86_400);
/// How much longer QUIC waits than the relay's own idle timer, so that an end has a code.
const IDLE_MARGIN: Duration = Duration::from_secs(10);

/// What stateless resets are made of.
///
/// Derived from the TLS key, so that it outlives the process: a relay that was killed and started anew answers
/// its former clients' packets with resets they believe, and they come back at once instead of pinging in vain.
pub(super) fn reset_key(identity: &TlsIdentity) -> Arc<dyn quinn_proto::crypto::HmacKey> {
    let secret =
        Sha256::new().chain_update(b"zrc-relay stateless reset\0").chain_update(identity.key.secret_der());
    Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret.finalize()))
}

/// What Retry and validation tokens are sealed with: the same on all shards, so that a token may come back to another.
///
/// Derived from the TLS key, as [`reset_key`] is: whoever has proven its address need not do so again because the relay
/// was started anew in the middle of a flood. Another certificate, shown while the relay runs, changes neither.
pub(super) fn token_key(identity: &TlsIdentity) -> Arc<dyn HandshakeTokenKey> {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"zrc-relay address tokens");
    Arc::new(salt.extract(identity.key.secret_der()))
}

/// Raises a connection's limits once its token has been accepted.
pub(super) fn open_up(connection: &quinn::Connection) {
    allow_streams(connection, Dir::Bi, FIRST_STREAMS_PER_KIND);
    allow_streams(connection, Dir::Uni, FIRST_STREAMS_PER_KIND);
    connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
}

/// Lets a client have so many streams of this kind open at once. More than before: never fewer.
pub(super) fn allow_streams(connection: &quinn::Connection, kind: Dir, streams: u32) {
    match kind {
        // The control stream is one of them.
        Dir::Bi => connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams + 1)),
        Dir::Uni => connection.set_max_concurrent_uni_streams(VarInt::from_u32(streams)),
    }
}

/// rustls' own choice of algorithms, the ones that cost the relay least first.
///
/// AES-128 with SHA-256 is what every QUIC stack must have, and as safe here as AES-256: what matters is encrypted
/// end to end inside. On processors with instructions for both, SHA-256 halves the cost of the key schedule.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// What connections are shown: refused where the key is not the certificate's.
pub(super) fn shown(identity: &TlsIdentity) -> Result<Shown, rustls::Error> {
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    tls.ignore_client_order = true;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    // A resumed session would save one signature of ours and cost every client's ticket its memory.
    tls.send_tls13_tickets = 0;
    Ok(Shown { tls: Arc::new(tls), spki: identity.spki()? })
}

/// The relay's side of every connection, as it is before a token is accepted; and what shows it a certificate.
pub(super) fn server_config(
    identity: &TlsIdentity,
    transport: Transport,
) -> Result<(quinn::ServerConfig, Arc<ServerCrypto>), StartError> {
    let crypto = Arc::new(ServerCrypto::new(shown(identity)?).ok_or(StartError::NoInitialCipher)?);
    let mut config = quinn::ServerConfig::with_crypto(crypto.clone());
    config.transport_config(Arc::new(transport.config()?)).token_key(token_key(identity));
    // An address has another owner tomorrow; a client that was here today is back by then.
    let mut tokens = ValidationTokenConfig::default();
    tokens.lifetime(TOKEN_LIFETIME);
    config.validation_token_config(tokens);
    Ok((config, crypto))
}

/// What differs from relay to relay in how connections are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transport {
    pub keepalive: Option<Duration>,
    pub idle_timeout: Duration,
    pub datagram_receive_buffer_bytes: usize,
}

impl Transport {
    /// As a connection is before its token is accepted.
    pub fn config(&self) -> Result<TransportConfig, StartError> {
        let Self { keepalive, idle_timeout, datagram_receive_buffer_bytes } = *self;
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .receive_window(VarInt::from_u32(WINDOW_UNAUTHENTICATED_BYTES))
            .send_window(SEND_WINDOW_BYTES)
            .datagram_receive_buffer_size(Some(datagram_receive_buffer_bytes))
            .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER_BYTES)
            .keep_alive_interval(keepalive)
            .max_idle_timeout(Some(
                IdleTimeout::try_from(idle_timeout + IDLE_MARGIN).map_err(|_| StartError::IdleTimeout)?,
            ));
        acks::ask_for_few(&mut transport);
        transport.mtu_discovery_config(Some(mtu::discovery()));
        transport.congestion_controller_factory(Arc::new(RateBasedFactory::new()));
        Ok(transport)
    }
}

/// Connection IDs whose first byte names the shard that made them; the rest is random.
pub(super) struct ShardConnectionIds {
    pub shard: u8,
    pub shards: u8,
}

impl ShardConnectionIds {
    const LEN: usize = 8;
}

impl ConnectionIdGenerator for ShardConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = RandomConnectionIdGenerator::new(Self::LEN - 1).generate_cid();
        ConnectionId::new(&[&[self.shard], &random[..]].concat())
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        // Modulo, as packets are steered: one from before a restart with more shards is answered by a reset.
        match cid.first().and_then(|first| first.checked_rem(self.shards)) {
            Some(shard) if shard == self.shard => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        Self::LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_algorithm_comes_first_and_no_other_is_lost() {
        let suites = |provider: &CryptoProvider| -> Vec<_> {
            provider.cipher_suites.iter().map(|suite| suite.suite()).collect()
        };
        let (ours, mut theirs) =
            (suites(&provider()), suites(&rustls::crypto::aws_lc_rs::default_provider()));
        assert_eq!(ours.first(), Some(&CipherSuite::TLS13_AES_128_GCM_SHA256));
        theirs.retain(|suite| *suite != CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(ours.get(1..), Some(&theirs[..]));
    }
}
