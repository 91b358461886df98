//! Issuers: back ends that may grant allocations by signing JWTs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{VerifyingKey, pkcs8::DecodePublicKey as _};
use toml::Table;

use super::{
    Fault,
    devices::public_key,
    read,
    read::{Reason, Section},
    tiers,
    tiers::Tiers,
};
use crate::{
    table::Tier,
    wire::{KeyId, PublicKey},
};

/// No public key comes near this.
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

/// A back end whose grants are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// What its tokens' headers call its key.
    pub kid: KeyId,
    /// What must have signed them.
    pub key: PublicKey,
    /// What those get that name no tier.
    pub tier: Tier,
    /// Those that its tokens may name.
    pub tiers: BTreeMap<Arc<str>, Tier>,
}

/// Reads the sections `[[relay.issuer]]`. Answers with the paths of all keys too; the files that were read are
/// added to `files`.
pub(super) fn read_issuers(
    tables: Vec<Table>,
    tiers: &Tiers,
    folder: &Path,
    files: &mut Vec<PathBuf>,
    faults: &mut Vec<Fault>,
) -> (Vec<Issuer>, Vec<String>) {
    // Read even when there is no issuer: it tells which keys there are.
    let (mut ignored, mut no_files) = (Vec::new(), Vec::new());
    let empty = Section::new("relay.issuer", Table::new(), &mut ignored);
    let keys = Issuer::read(empty, tiers, folder, &mut no_files).1;
    let mut issuers: Vec<Issuer> = Vec::new();
    for (n, table) in tables.into_iter().enumerate() {
        let path = format!("relay.issuer[{n}]");
        let section = Section::new(path.clone(), table, faults);
        let Some(issuer) = Issuer::read(section, tiers, folder, files).0 else { continue };
        if issuers.iter().any(|other| other.kid == issuer.kid) {
            faults.push(Fault {
                key: format!("{path}.kid"),
                value: Some(format!("{:?}", issuer.kid.as_str())),
                reason: "another issuer above has this kid; give each key a kid of its own".into(),
                ..Fault::default()
            });
        }
        issuers.push(issuer);
    }
    (issuers, keys)
}

impl Issuer {
    fn read(
        mut section: Section<'_>,
        tiers: &Tiers,
        folder: &Path,
        files: &mut Vec<PathBuf>,
    ) -> (Option<Self>, Vec<String>) {
        let kid = section.read("kid", r#""backend-2026""#, |value| {
            read::text(value)?.parse::<KeyId>().map_err(|error| error.to_string())
        });
        let example = format!("{:?}", "a1".repeat(32));
        let key = section.read("key", &example, public_key);
        let from_file = section.read("key_path", r#""/etc/zrc-relay/issuer.pem""#, |value| {
            let path = folder.join(read::text(value)?);
            files.push(path.clone());
            key_file(&path)
        });
        if !section.was_given("kid") {
            let reason = "an issuer has a kid, which the header of its tokens names".into();
            section.fault("kid", None, reason, r#"kid = "backend-2026""#.into());
        }
        if section.was_given("key") == section.was_given("key_path") {
            let reason = "an issuer has one Ed25519 public key: key, 64 hex digits, or key_path, a file";
            section.fault("key", None, reason.into(), format!("key = {example}"));
        }
        let tier = section.read("tier", r#""paid""#, tiers::known_tier(tiers));
        let own = tier
            .or_else(|| tiers.get_key_value(tiers::DEFAULT_TIER).map(|(name, tier)| (name.clone(), *tier)));
        let named = section.read("tiers", r#"["free", "paid"]"#, |value| {
            let names = value.as_array().ok_or("this must be a list of tiers' names in quotes")?;
            names.iter().map(tiers::known_tier(tiers)).collect::<Result<BTreeMap<_, _>, String>>()
        });
        let checked = kid.zip(key.or(from_file)).zip(own).map(|((kid, key), (name, tier))| {
            let mut tiers = named.unwrap_or_default();
            // A token may say what it would get anyway.
            tiers.insert(name, tier);
            Self { kid, key, tier, tiers }
        });
        (checked, section.finish())
    }
}

/// A public key as OpenSSL writes it (PEM), or as a JWK.
fn key_file(path: &Path) -> Result<PublicKey, Reason> {
    let text = read::text_file(path, MAX_KEY_FILE_BYTES)?;
    let bytes = match text.trim_start().starts_with('{') {
        true => jwk(&text)?,
        false => *VerifyingKey::from_public_key_pem(text.trim())
            .map_err(|_| "the file holds no Ed25519 public key: PEM (PUBLIC KEY), or a JWK".to_owned())?
            .as_bytes(),
    };
    PublicKey::from_bytes(&bytes).map_err(|error| format!("the key cannot be used: {error}").into())
}

fn jwk(text: &str) -> Result<[u8; 32], String> {
    let jwk: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("this is no JWK: {error}"))?;
    let member = |name: &str| jwk.get(name).and_then(serde_json::Value::as_str);
    if member("kty") != Some("OKP") || member("crv") != Some("Ed25519") {
        return Err("the JWK must say kty OKP and crv Ed25519".into());
    }
    if jwk.get("d").is_some() {
        return Err("the JWK holds the private key; a relay is given the public one alone".into());
    }
    let x = member("x").and_then(|x| URL_SAFE_NO_PAD.decode(x).ok());
    x.and_then(|x| x.try_into().ok()).ok_or_else(|| "the JWK's x must be 32 bytes of base64url".into())
}
