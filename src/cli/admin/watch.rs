//! `admin watch`: what happens, a line each.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    super::{Exit, Failure, OrFail as _, out, show_unix},
    Client, plain,
};

/// Of one event; it has a few hundred bytes.
const MAX_EVENT_BYTES: usize = 64 << 10;

/// Until interrupted. A stream that ends by itself, after an hour, is gone on with.
pub(super) async fn watch(client: &Client, as_json: bool) -> Result<Exit, Failure> {
    loop {
        let mut response = client.send(Method::GET, "/admin/events", &[], None, None).await?;
        let mut events = Events::default();
        let mut seen = false;
        while let Some(part) = response.chunk().await.or_fail(Exit::Unavailable, "the stream broke off")? {
            for (name, data) in events.read(&part)? {
                seen = true;
                if as_json {
                    out::json(&json!({ "event": name, "data": data }))?;
                } else {
                    out::data(line(&name, &data))?;
                }
            }
        }
        if !seen {
            return Err(Failure::new(Exit::Unavailable, "the stream ended at once"));
        }
    }
}

/// Takes a stream of server-sent events apart.
#[derive(Default)]
struct Events {
    unread: Vec<u8>,
}

impl Events {
    /// The events that are whole now.
    fn read(&mut self, part: &[u8]) -> Result<Vec<(String, Value)>, Failure> {
        self.unread.extend_from_slice(part);
        let mut events = Vec::new();
        while let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = self.unread.drain(..end + 2).collect();
            let (mut name, mut data) = (String::new(), Value::Null);
            for line in String::from_utf8_lossy(&event).lines() {
                if let Some(said) = line.strip_prefix("event: ") {
                    name = said.to_owned();
                } else if let Some(said) = line.strip_prefix("data: ") {
                    data = serde_json::from_str(said).or_fail(Exit::Data, "an event is no JSON")?;
                }
            }
            if !name.is_empty() {
                events.push((name, data));
            }
        }
        if self.unread.len() > MAX_EVENT_BYTES {
            return Err(Failure::new(Exit::Data, "an event is too long"));
        }
        Ok(events)
    }
}

fn line(name: &str, data: &Value) -> String {
    let at = data["at_unix_ms"].as_u64().map_or_else(|| "-".repeat(23), |at| show_unix(at / 1000));
    let fields = data.as_object().into_iter().flatten().filter(|(key, _)| *key != "at_unix_ms");
    let shown: Vec<String> = fields
        .map(|(key, value)| match value {
            Value::String(text) => format!("{}={}", plain(key), plain(text)),
            other => format!("{}={}", plain(key), plain(&other.to_string())),
        })
        .collect();
    format!("{at}  {:<19} {}", plain(name), shown.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_parts() {
        let mut events = Events::default();
        let stream = b": still here\n\nevent: admin\ndata: {\"reason\":\"kill\",\"at_unix_ms\":0}\n\nevent: x\ndata: 1\n\n";
        let mut read = Vec::new();
        for byte in stream {
            read.extend(events.read(&[*byte]).unwrap());
        }
        assert_eq!(read.len(), 2);
        assert_eq!(read[1], ("x".into(), json!(1)));
        assert_eq!(line(&read[0].0, &read[0].1), "1970-01-01 00:00:00 UTC  admin               reason=kill");
        assert!(events.read(&[b'x'; MAX_EVENT_BYTES + 1]).is_err());
    }
}
