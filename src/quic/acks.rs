//! Fewer acknowledgements than quinn asks for by itself.
//!
//! Both ends ask each other, by the acknowledgement frequency extension, to acknowledge every tenth packet, or the
//! first one after [`MAX_ACK_DELAY`]. A peer that does not know the extension acknowledges every second packet.
//!
//! quinn asks for no more delay than the larger of the round trip and 25 ms, unless the peer's transport
//! parameters say that it cannot acknowledge sooner. On a short path with one packet each 10 ms, which is what
//! most allocations look like to a relay, that is an acknowledgement for every third packet, and a packet that
//! carries nothing else costs either end nearly as much as one that carries a datagram. So quinn is shown the
//! peer's parameters with a `min_ack_delay` of [`MAX_ACK_DELAY`]. Nothing of that is sent; the peer gets a request
//! that the extension allows and that it keeps to or not.

use std::{any::Any, sync::Arc, time::Duration};

use quinn::{AckFrequencyConfig, ConnectError, ConnectionId, Side, TransportConfig, VarInt, crypto};
use quinn_proto::{TransportError, transport_parameters::TransportParameters};

/// How long a peer may hold back an acknowledgement.
///
/// What it costs is time to notice a loss that no later packet reveals: the end of a stream, or a control message
/// on an otherwise silent connection, is sent again after the round trip, four times its variation, and this.
/// Where packets follow, a gap in their numbers is acknowledged at once. 50 ms is near what TCP's delayed
/// acknowledgements (40 ms) have made applications used to, and longer buys little: with 200 pairs and one packet
/// each 10 ms, a relay's CPU per datagram is 1 without the extension, 0.92 with 25 ms, 0.80 with 50 and with 100 ms.
pub(crate) const MAX_ACK_DELAY: Duration = Duration::from_millis(50);
/// Packets that a peer may leave without acknowledgement. Windows that packets have to fit are larger than this.
const ACK_ELICITING_THRESHOLD: u32 = 10;

/// draft-ietf-quic-ack-frequency, as quinn speaks it.
const MIN_ACK_DELAY_ID: u64 = 0xff04_de1b;
/// RFC 9000, section 18.2.
const MAX_ACK_DELAY_ID: u64 = 0x0b;

/// Has the peer asked to acknowledge less often, if it knows how.
pub(crate) fn ask_for_few(transport: &mut TransportConfig) {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_ELICITING_THRESHOLD))
        .max_ack_delay(Some(MAX_ACK_DELAY));
    transport.ack_frequency_config(Some(acks));
}

/// `crypto`, whose sessions show quinn a relay that takes its time.
pub(crate) fn client(crypto: Arc<dyn crypto::ClientConfig>) -> Arc<dyn crypto::ClientConfig> {
    Arc::new(Client(crypto))
}

struct Client(Arc<dyn crypto::ClientConfig>);

impl crypto::ClientConfig for Client {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        let inner = self.0.clone().start_session(version, server_name, params)?;
        Ok(Box::new(Session(inner)))
    }
}

/// A TLS session; all but the peer's parameters is its own affair.
struct Session(Box<dyn crypto::Session>);

impl crypto::Session for Session {
    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(received) = self.0.transport_parameters()? else { return Ok(None) };
        let mut bytes = Vec::with_capacity(256);
        received.write(&mut bytes);
        let patient = patient(&bytes)
            .and_then(|bytes| TransportParameters::read(Side::Client, &mut bytes.as_slice()).ok());
        Ok(Some(patient.unwrap_or(received)))
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> crypto::Keys {
        self.0.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.0.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.0.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn crypto::HeaderKey>, Box<dyn crypto::PacketKey>)> {
        self.0.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.0.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.0.read_handshake(buf)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<crypto::Keys> {
        self.0.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<crypto::KeyPair<Box<dyn crypto::PacketKey>>> {
        self.0.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.0.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), crypto::ExportKeyingMaterialError> {
        self.0.export_keying_material(output, label, context)
    }
}

/// The same transport parameters with no less acknowledgement delay than [`MAX_ACK_DELAY`]; `None` when they are
/// to stay as they are: the peer does not know the extension, or they are not transport parameters.
pub(crate) fn patient(parameters: &[u8]) -> Option<Vec<u8>> {
    let mut least_micros = None;
    // RFC 9000's default.
    let mut most_ms = 25;
    let mut patient = Vec::with_capacity(parameters.len() + 8);
    let mut rest = parameters;
    while !rest.is_empty() {
        let (id, after_id) = varint(rest)?;
        let (len, after_len) = varint(after_id)?;
        let (value, next) = after_len.split_at_checked(usize::try_from(len).ok()?)?;
        match id {
            MIN_ACK_DELAY_ID => least_micros = Some(varint(value)?.0),
            MAX_ACK_DELAY_ID => most_ms = varint(value)?.0,
            _ => patient.extend_from_slice(rest.get(..rest.len() - next.len())?),
        }
        rest = next;
    }
    let micros = u64::try_from(MAX_ACK_DELAY.as_micros()).ok()?;
    put(&mut patient, MIN_ACK_DELAY_ID, least_micros?.max(micros));
    put(&mut patient, MAX_ACK_DELAY_ID, most_ms.max(micros.div_ceil(1000)));
    Some(patient)
}

/// A variable-length integer (RFC 9000, section 16) and what follows it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, _) = bytes.split_first()?;
    let (encoded, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let value = encoded.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value & (u64::MAX >> 2 >> (64 - 8 * encoded.len())), rest))
}

/// One parameter, each number in the fewest bytes.
fn put(parameters: &mut Vec<u8>, id: u64, value: u64) {
    put_varint(parameters, id);
    let mut encoded = Vec::with_capacity(8);
    put_varint(&mut encoded, value);
    put_varint(parameters, encoded.len() as u64);
    parameters.extend_from_slice(&encoded);
}

fn put_varint(bytes: &mut Vec<u8>, value: u64) {
    let exponent = match value {
        0..0x40 => 0_u8,
        0x40..0x4000 => 1,
        0x4000..0x4000_0000 => 2,
        _ => 3,
    };
    let [first, rest @ ..] = &(value << (64 - (8 << exponent))).to_be_bytes();
    bytes.push(first | exponent << 6);
    bytes.extend_from_slice(rest.get(..(1 << exponent) - 1).unwrap_or(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters as they are sent: max_idle_timeout of 30 s, what is given, and an empty one that nobody knows.
    fn parameters(given: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, 0x01, 30_000);
        for (id, value) in given {
            put(&mut bytes, *id, *value);
        }
        put_varint(&mut bytes, 27);
        put_varint(&mut bytes, 0);
        bytes
    }

    fn all(mut bytes: &[u8]) -> Vec<(u64, Option<u64>)> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (id, rest) = varint(bytes).unwrap();
            let (len, rest) = varint(rest).unwrap();
            let (value, rest) = rest.split_at(len as usize);
            all.push((id, varint(value).map(|(value, _)| value)));
            bytes = rest;
        }
        all
    }

    #[test]
    fn integers_are_written_in_the_fewest_bytes_and_read_back() {
        for (value, encoded) in [
            (0, "00"),
            (63, "3f"),
            (64, "4040"),
            (50_000, "8000c350"),
            (16_383, "7fff"),
            (16_384, "80004000"),
            (0x3fff_ffff, "bfffffff"),
            (0x4000_0000, "c000000040000000"),
            (MIN_ACK_DELAY_ID, "c0000000ff04de1b"),
            ((1 << 62) - 1, "ffffffffffffffff"),
        ] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(hex::encode(&bytes), encoded);
            bytes.push(7);
            assert_eq!(varint(&bytes), Some((value, &[7][..])));
            assert_eq!(varint(&bytes[..bytes.len() - 2]), None, "{encoded} cut short");
        }
    }

    #[test]
    fn a_peer_that_knows_the_extension_is_given_time() {
        let shown = patient(&parameters(&[(MIN_ACK_DELAY_ID, 1000)])).unwrap();
        assert_eq!(
            all(&shown),
            [(1, Some(30_000)), (27, None), (MIN_ACK_DELAY_ID, Some(50_000)), (MAX_ACK_DELAY_ID, Some(50))]
        );
        // quinn takes them as they are.
        assert!(TransportParameters::read(Side::Client, &mut shown.as_slice()).is_ok());
    }

    #[test]
    fn a_peer_that_takes_more_time_keeps_it() {
        let shown = patient(&parameters(&[(MAX_ACK_DELAY_ID, 300), (MIN_ACK_DELAY_ID, 200_000)])).unwrap();
        assert!(all(&shown).contains(&(MIN_ACK_DELAY_ID, Some(200_000))));
        assert!(all(&shown).contains(&(MAX_ACK_DELAY_ID, Some(300))));
    }

    #[test]
    fn other_peers_and_broken_parameters_stay_as_they_are() {
        assert_eq!(patient(&parameters(&[])), None);
        assert_eq!(patient(&parameters(&[(MAX_ACK_DELAY_ID, 26)])), None);
        let whole = parameters(&[(MIN_ACK_DELAY_ID, 1000)]);
        for len in 0..whole.len() {
            // Nothing to find before the parameter is whole; nothing to believe after it within a broken one.
            let shown = patient(&whole[..len]);
            assert_eq!(shown.is_some(), len == whole.len() - 2, "{len}");
        }
        assert_eq!(patient(&[0x01, 0xff]), None);
    }
}
