//! The section `[security]`: how security events are logged, and to whom they are sent.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Url;
use toml::{Table, Value};
use zeroize::Zeroizing;

use super::{
    Fault,
    read::{self, Reason, Section},
};

/// What Standard Webhooks puts before a secret's base64.
const SECRET_PREFIX: &str = "whsec_";
/// What Standard Webhooks asks of a secret, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The one in use and the one before it.
const MAX_SECRETS: usize = 2;
const MAX_SECRET_FILE_BYTES: u64 = 4096;
const URL_EXAMPLE: &str = r#""https://siem.example.com/zrc-relay""#;
const SECRET_EXAMPLE: &str = r#""whsec_..." with what `openssl rand -base64 32` prints after the underscore"#;

const DEFAULT_LOG_LINES_PER_SEC: u32 = 10;
const MAX_LOG_LINES_PER_SEC: u32 = 10_000;

/// The section `[security]`.
#[derive(Debug)]
pub struct Security {
    /// Whether log lines above debug name the validated address that an event is about.
    pub log_addresses: bool,
    /// Lines of one kind of event in one second; 0 for none.
    pub log_lines_per_sec: u32,
    /// Where events are sent.
    pub webhook: Option<Webhook>,
    /// The file that the webhook's secrets were read from.
    pub secret_file: Option<PathBuf>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            log_addresses: false,
            log_lines_per_sec: DEFAULT_LOG_LINES_PER_SEC,
            webhook: None,
            secret_file: None,
        }
    }
}

/// Keys to sign with, the newest first.
pub type Secrets = Vec<Zeroizing<Vec<u8>>>;

/// Where events are sent, and how they are signed.
pub struct Webhook {
    /// `http` or `https`, with a host.
    pub url: Url,
    /// One or two keys, the newest first.
    pub secrets: Secrets,
}

/// Says nothing of the secrets, nor of the URL, which may hold some.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").finish_non_exhaustive()
    }
}

impl Security {
    pub(super) fn read(table: Table, folder: &Path, faults: &mut Vec<Fault>) -> (Self, Vec<String>) {
        let mut section = Section::new("security", table, faults);
        let log_addresses = section.read("log_addresses", "true", read::switch).unwrap_or(false);
        let log_lines_per_sec = section
            .read("log_lines_per_sec", "10", |value| {
                read::number(0..=MAX_LOG_LINES_PER_SEC)(value).map_err(|reason| format!("{reason} (0: none)"))
            })
            .unwrap_or(DEFAULT_LOG_LINES_PER_SEC);
        let url = section.read_secret("webhook_url", URL_EXAMPLE, url);
        let said = section.read_secret("webhook_secret", SECRET_EXAMPLE, secrets);
        let (secret_file, filed) = section
            .read("webhook_secret_file", r#""webhook.secret""#, |value| secret_file(value, folder))
            .unzip();
        let (has_url, has_secret, has_file) = (
            section.was_given("webhook_url"),
            section.was_given("webhook_secret"),
            section.was_given("webhook_secret_file"),
        );
        if has_url && !has_secret && !has_file {
            let reason = "what is sent must be signed, so that receivers can tell it from what is forged";
            section.fault(
                "webhook_secret",
                None,
                reason.into(),
                format!("webhook_secret = {SECRET_EXAMPLE}"),
            );
        }
        if !has_url && (has_secret || has_file) {
            let example = format!("webhook_url = {URL_EXAMPLE}");
            section.fault("webhook_url", None, "there is a secret, and nowhere to send to".into(), example);
        }
        if has_secret && has_file {
            let reason = "the secret stands in webhook_secret already; keep one of the two";
            section.fault("webhook_secret_file", None, reason.into(), String::new());
        }
        let webhook = url.zip(said.or(filed)).map(|(url, secrets)| Webhook { url, secrets });
        (Self { log_addresses, log_lines_per_sec, webhook, secret_file }, section.finish())
    }
}

fn url(value: &Value) -> Result<Url, &'static str> {
    const FORM: &str = "this must be a URL that begins with https:// or http:// and names a host";
    let url = Url::parse(&read::text(value)?).map_err(|_| FORM)?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(FORM);
    }
    Ok(url)
}

/// One text, or a list of them.
fn secrets(value: &Value) -> Result<Secrets, String> {
    match value {
        Value::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            checked(&texts.ok_or("this must be a text in quotes, or a list of them")?)
        }
        _ => checked(&[&read::text(value)?]),
    }
}

/// One on each line; blank lines and those that begin with # are skipped.
fn secret_file(value: &Value, folder: &Path) -> Result<(PathBuf, Secrets), Reason> {
    let path = folder.join(read::text(value)?);
    let text = read::text_file(&path, MAX_SECRET_FILE_BYTES)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let secrets = checked(&lines.collect::<Vec<_>>())?;
    Ok((path, secrets))
}

fn checked(texts: &[&str]) -> Result<Secrets, String> {
    if texts.is_empty() || texts.len() > MAX_SECRETS {
        return Err(
            "there must be one secret, or two while receivers change over, the newer one first".into()
        );
    }
    texts
        .iter()
        .map(|text| {
            let secret = text.strip_prefix(SECRET_PREFIX).and_then(|text| STANDARD.decode(text).ok());
            secret
                .map(Zeroizing::new)
                .filter(|secret| SECRET_BYTES.contains(&secret.len()))
                .ok_or_else(|| "a secret is whsec_ and the base64 of 24 to 64 random bytes".into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;

    const GOOD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read(section: &str, folder: &Path) -> Result<Security, crate::config::Faults> {
        let text = format!("[relay]\nself_certified = true\n[security]\n{section}");
        Config::parse(&text, folder).map(|config| config.security)
    }

    #[test]
    fn the_whole_section_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let security = read("", folder.path()).unwrap();
        assert_eq!((security.log_addresses, security.log_lines_per_sec), (false, 10));
        assert!(security.webhook.is_none());

        fs::write(folder.path().join("secrets"), format!("# of the SIEM\n{GOOD}\n\n {GOOD}\r\n")).unwrap();
        let other = format!("whsec_{}", STANDARD.encode([9; 64]));
        for (secret, keys) in [
            (format!("webhook_secret = {GOOD:?}"), 1),
            (format!("webhook_secret = [{other:?}, {GOOD:?}]"), 2),
            ("webhook_secret_file = \"secrets\"".into(), 2),
        ] {
            let text = format!(
                "log_addresses = true\nlog_lines_per_sec = 0\nwebhook_url = \"http://u:p@10.0.0.1:8080/x\"\n{secret}\n"
            );
            let security = read(&text, folder.path()).unwrap();
            assert_eq!((security.log_addresses, security.log_lines_per_sec), (true, 0));
            let shown = format!("{security:?}");
            assert!(!shown.contains("10.0.0.1") && !shown.contains("[9"), "{shown}");
            let webhook = security.webhook.unwrap();
            assert_eq!(webhook.url.as_str(), "http://u:p@10.0.0.1:8080/x");
            assert_eq!(webhook.secrets.len(), keys);
            assert_eq!(webhook.secrets.last().unwrap().len(), 24);
        }
    }

    #[test]
    fn what_cannot_be_is_said_without_saying_secrets() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("empty"), "# nothing\n").unwrap();
        fs::write(folder.path().join("long"), format!("{GOOD}\n").repeat(200)).unwrap();
        let url = "webhook_url = \"https://siem.example.com\"\n";
        let short = format!("whsec_{}", STANDARD.encode([0xca; 23]));
        let long = format!("whsec_{}", STANDARD.encode([0xca; 65]));
        for (text, key) in [
            ("log_addresses = 1".into(), "log_addresses"),
            ("log_lines_per_sec = 10001".into(), "log_lines_per_sec"),
            (url.into(), "webhook_secret"),
            (format!("webhook_secret = {GOOD:?}"), "webhook_url"),
            ("webhook_secret_file = \"none\"\n".to_owned() + url, "webhook_secret_file"),
            ("webhook_secret_file = \"empty\"\n".to_owned() + url, "webhook_secret_file"),
            ("webhook_secret_file = \"long\"\n".to_owned() + url, "webhook_secret_file"),
            (format!("{url}webhook_secret = {short:?}"), "webhook_secret"),
            (format!("{url}webhook_secret = {long:?}"), "webhook_secret"),
            (format!("{url}webhook_secret = [{GOOD:?}, {GOOD:?}, {GOOD:?}]"), "webhook_secret"),
            (format!("{url}webhook_secret = []"), "webhook_secret"),
            (format!("{url}webhook_secret = [7]"), "webhook_secret"),
            (format!("{url}webhook_secret = {:?}", &GOOD[6..]), "webhook_secret"),
            (format!("{url}webhook_secret = {GOOD:?}\nwebhook_secrte = {:?}", &GOOD[6..]), "webhook_secrte"),
            (format!("{url}webhook_secret = {GOOD:?}\nhook = {GOOD:?}"), "hook"),
        ] {
            let faults = read(&text, folder.path()).unwrap_err();
            assert_eq!(faults.0.len(), 1, "{text}: {faults}");
            assert_eq!(faults.0[0].key, format!("security.{key}"), "{text}");
            let said = faults.to_string();
            assert!(!said.contains("MfKQ9r8G") && !said.contains("ysrKysrK"), "{said}");
        }
        let both = format!("{url}webhook_secret = {GOOD:?}\nwebhook_secret_file = \"empty\"");
        let faults = read(&both, folder.path()).unwrap_err();
        assert!(faults.to_string().contains("already"), "{faults}");
        for url in ["ftp://u:hunter2@a/", "hunter2", "https://", "unix:/hunter2"] {
            let text = format!("webhook_url = {url:?}\nwebhook_secret = {GOOD:?}");
            let faults = read(&text, folder.path()).unwrap_err();
            assert_eq!(faults.0[0].key, "security.webhook_url");
            assert!(!faults.to_string().contains("hunter2"), "{faults}");
        }
        // Not even where the file is no TOML at all.
        let faults = read(&format!("webhook_secret = {GOOD}"), folder.path()).unwrap_err();
        assert!(!faults.to_string().contains("MfKQ9r8G"), "{faults}");
    }
}
