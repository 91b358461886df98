//! The section `[guard]`: who may come, how often, and what floods bring.

use ipnet::IpNet;
use toml::{Table, Value};

use super::{
    Fault,
    read::{self, Section},
};

/// More per minute than that is one each six milliseconds: no limit that anybody hits by accident.
const MAX_PER_MINUTE: u32 = 10_000;
/// A list that is longer belongs into a firewall.
const MAX_NETWORKS: usize = 100_000;

/// The section `[guard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Connections of one source; 0 for no limit.
    pub connections_per_minute: u32,
    /// Requests for an allocation of one source; 0 for no limit.
    pub allocation_requests_per_minute: u32,
    /// Whether the loopback addresses have no such limits.
    pub exempt_loopback: bool,
    /// Networks whose addresses have no such limits.
    pub exempt: Vec<IpNet>,
    /// Networks that are let in where a wider block would keep them out.
    pub allow: Vec<IpNet>,
    /// Networks that are kept out.
    pub block: Vec<IpNet>,
    /// Unfinished handshakes above which callers first prove their address; 0: always.
    pub retry_above: u32,
    /// Answers a second to callers who have not, above which there is silence; `None` for no bound.
    pub silence_above: Option<u32>,
    /// Sources that are remembered at once.
    pub max_sources: usize,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            connections_per_minute: 30,
            allocation_requests_per_minute: 10,
            exempt_loopback: true,
            exempt: Vec::new(),
            allow: Vec::new(),
            block: Vec::new(),
            retry_above: 256,
            silence_above: Some(4000),
            max_sources: 1 << 20,
        }
    }
}

impl Guard {
    /// Nothing is limited but what costs others: floods are, as ever.
    pub(super) fn without_limits() -> Self {
        Self { connections_per_minute: 0, allocation_requests_per_minute: 0, ..Self::default() }
    }

    /// Also answers with the paths of all keys there are.
    pub(super) fn read(table: Table, faults: &mut Vec<Fault>) -> (Self, Vec<String>) {
        let default = Self::default();
        let mut guard = Section::new("guard", table, faults);
        let mut per_minute = |key, default: u32| {
            let number = |value: &Value| {
                read::number(0..=MAX_PER_MINUTE)(value).map_err(|reason| format!("{reason} (0: no limit)"))
            };
            guard.read(key, &default.to_string(), number).unwrap_or(default)
        };
        let connections_per_minute = per_minute("connections_per_minute", default.connections_per_minute);
        let allocation_requests_per_minute =
            per_minute("allocation_requests_per_minute", default.allocation_requests_per_minute);
        let exempt_loopback =
            guard.read("exempt_loopback", "false", read::switch).unwrap_or(default.exempt_loopback);
        let mut list =
            |key| guard.read(key, r#"["192.0.2.0/24", "2001:db8::7"]"#, networks).unwrap_or_default();
        let (exempt, allow, block) = (list("exempt"), list("allow"), list("block"));
        let retry_above = guard
            .read("retry_above", "256", |value| {
                read::number(0..=1_000_000)(value).map_err(|reason| format!("{reason} (0: always)"))
            })
            .unwrap_or(default.retry_above);
        let silence_above = guard
            .read("silence_above", "4000", |value| {
                read::number(0..=10_000_000)(value).map_err(|reason| format!("{reason} (0: no bound)"))
            })
            .map_or(default.silence_above, |number| (number != 0).then_some(number));
        let max_sources = guard
            .read("max_sources", "1_048_576", read::number(1024..=100_000_000))
            .unwrap_or(default.max_sources);
        let checked = Self {
            connections_per_minute,
            allocation_requests_per_minute,
            exempt_loopback,
            exempt,
            allow,
            block,
            retry_above,
            silence_above,
            max_sources,
        };
        (checked, guard.finish())
    }
}

/// A list of networks; an address stands for itself alone.
fn networks(value: &Value) -> Result<Vec<IpNet>, String> {
    let list = value.as_array().ok_or("this must be a list of networks in brackets")?;
    if list.len() > MAX_NETWORKS {
        return Err(format!("a list has at most {MAX_NETWORKS} networks; a firewall takes longer ones"));
    }
    list.iter().map(network).collect()
}

fn network(value: &Value) -> Result<IpNet, String> {
    let text = read::text(value)?;
    let network: Result<IpNet, _> = if text.contains('/') {
        text.parse().map_err(|_| ())
    } else {
        text.parse::<std::net::IpAddr>().map(IpNet::from).map_err(|_| ())
    };
    let Ok(network) = network else {
        return Err(format!("{text:?} is neither an address nor a network with its length, as 192.0.2.0/24"));
    };
    // Either the length or the address is not what was meant, and the one would keep out what the other does not.
    if network.addr() != network.network() {
        return Err(format!("{text:?} has bits behind its length; {} is the network", network.trunc()));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Guard, Vec<(String, String)>> {
        let mut faults = Vec::new();
        let (guard, _) = Guard::read(text.parse().unwrap(), &mut faults);
        if faults.is_empty() {
            return Ok(guard);
        }
        Err(faults.into_iter().map(|fault| (fault.key, fault.reason)).collect())
    }

    #[test]
    fn r8_every_key_is_read() {
        assert_eq!(read("").unwrap(), Guard::default());
        let guard = read(
            r#"
            connections_per_minute = 60
            allocation_requests_per_minute = 0
            exempt_loopback = false
            exempt = ["10.0.0.0/8"]
            allow = ["192.0.2.7", "2001:db8::/32"]
            block = ["0.0.0.0/0", "::/0", "::ffff:192.0.2.7"]
            retry_above = 0
            silence_above = 0
            max_sources = 5000
            "#,
        )
        .unwrap();
        let nets =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let expected = Guard {
            connections_per_minute: 60,
            allocation_requests_per_minute: 0,
            exempt_loopback: false,
            exempt: nets(&["10.0.0.0/8"]),
            allow: nets(&["192.0.2.7/32", "2001:db8::/32"]),
            block: nets(&["0.0.0.0/0", "::/0", "::ffff:192.0.2.7/128"]),
            retry_above: 0,
            silence_above: None,
            max_sources: 5000,
        };
        assert_eq!(guard, expected);
    }

    #[test]
    fn r8_what_cannot_be_is_a_fault_with_its_reason() {
        for (line, key, words) in [
            ("connections_per_minute = -1", "connections_per_minute", "0: no limit"),
            ("allocation_requests_per_minute = 10001", "allocation_requests_per_minute", "from 0 to 10000"),
            ("exempt_loopback = 1", "exempt_loopback", "true or false"),
            ("block = \"10.0.0.0/8\"", "block", "list"),
            ("block = [7]", "block", "text"),
            ("block = [\"10.0.0.0/33\"]", "block", "10.0.0.0/33"),
            ("allow = [\"example.com\"]", "allow", "example.com"),
            ("exempt = [\"192.0.2.7/24\"]", "exempt", "192.0.2.0/24"),
            ("retry_above = 1.5", "retry_above", "0: always"),
            ("silence_above = true", "silence_above", "0: no bound"),
            ("max_sources = 0", "max_sources", "from 1024"),
            ("blocked = []", "blocked", "is block meant"),
        ] {
            let faults = read(line).unwrap_err();
            assert_eq!(faults.len(), 1, "{line}");
            assert_eq!(faults[0].0, format!("guard.{key}"));
            assert!(faults[0].1.contains(words), "{line}: {}", faults[0].1);
        }
    }
}
