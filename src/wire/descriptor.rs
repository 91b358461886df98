//! How a relay introduces itself: `relay.json`, and the same at `/.well-known/zrc-relay`.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

use super::RelayId;

/// All that a client needs in order to find a relay and to trust it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// An IP address or a host name.
    pub addr: String,
    /// The UDP port.
    pub port: u16,
    /// The name in the relay's certificate, sent as SNI.
    pub server_name: String,
    /// The relay's key, when it is to be trusted by pin; without one the WebPKI vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki: Option<SpkiPin>,
    /// The audience that tokens for this relay name.
    pub relay_id: RelayId,
    /// Where it stands, as its operator calls it.
    #[serde(default)]
    pub region: Option<String>,
}

impl Serialize for RelayId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RelayId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo, written `sha256/<base64>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpkiPin(pub [u8; 32]);

/// Why a text is not a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pin is \"sha256/\" and 44 characters of base64 (32 bytes)")]
pub struct PinError;

impl SpkiPin {
    /// The pin of a DER-encoded SubjectPublicKeyInfo.
    pub fn of(spki_der: &[u8]) -> Self {
        Self(Sha256::digest(spki_der).into())
    }
}

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpkiPin({self})")
    }
}

impl FromStr for SpkiPin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let encoded = text.strip_prefix("sha256/").ok_or(PinError)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| PinError)?;
        bytes.try_into().map(Self).map_err(|_| PinError)
    }
}

impl Serialize for SpkiPin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpkiPin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIN: &str = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn a_pin_is_the_hash_of_the_spki() {
        // SHA-256 of nothing is well known.
        assert_eq!(SpkiPin::of(b"").to_string(), PIN);
        assert_eq!(PIN.parse(), Ok(SpkiPin::of(b"")));
        assert_eq!(format!("{:?}", SpkiPin::of(b"")), format!("SpkiPin({PIN})"));
        assert_eq!(serde_json::to_string(&SpkiPin::of(b"")).unwrap(), format!("\"{PIN}\""));
    }

    #[test]
    fn a_pin_has_one_text() {
        let last_bits = PIN.replace("uFU=", "uFV=");
        for bad in [
            "",
            "sha256/",
            &PIN[7..],
            &PIN[..PIN.len() - 1],
            &PIN.replace('=', "=="),
            &PIN.replace("sha256", "SHA256"),
            &PIN.replace("sha256/", "sha256//"),
            &PIN.replace('+', "-"),
            &PIN.replace("47D", "47"),
            &PIN.replace("47D", "47DDDDD"),
            &format!("{PIN}\n"),
            &format!(" {PIN}"),
            &last_bits,
        ] {
            assert_eq!(bad.parse::<SpkiPin>(), Err(PinError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_descriptor_survives_its_text(
            addr: String, port: u16, server_name: String, pin: Option<[u8; 32]>, id: [u8; 16],
            region: Option<String>,
        ) {
            let descriptor =
                Descriptor { addr, port, server_name, spki: pin.map(SpkiPin), relay_id: RelayId(id), region };
            let text = serde_json::to_string(&descriptor).unwrap();
            prop_assert_eq!(serde_json::from_str::<Descriptor>(&text).unwrap(), descriptor);
        }

        #[test]
        fn any_text_is_a_pin_or_none(text in "(sha256/)?[A-Za-z0-9+/=]{40,48}") {
            if let Ok(pin) = text.parse::<SpkiPin>() {
                prop_assert_eq!(pin.to_string(), text);
            }
        }
    }
}
