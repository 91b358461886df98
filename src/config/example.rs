//! What `relay.example.toml` says: which keys there are, their defaults and kinds, and which of them a running relay
//! heeds when they change.
//!
//! The file is the one list of keys. Tests hold it to what is read, to the defaults, and to what a reload does.

use toml::{Table, Value};

/// The file itself.
pub const EXAMPLE: &str = include_str!("../../relay.example.toml");

/// One key of the example.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// `relay.listen_port`, `relay.tier.quota`.
    pub path: String,
    /// Whether its section stands there once for each of several: `[[relay.tier]]`.
    pub is_in_list: bool,
    /// What stands there.
    pub value: Value,
    /// Whether that holds without being said. Otherwise it is one of many.
    pub is_default: bool,
    /// The comment above it, in one line.
    #[cfg_attr(not(test), allow(dead_code, reason = "tests compare it with what happens"))]
    pub about: String,
    /// Whether a change is heeded while the relay runs.
    pub is_live: bool,
}

/// All keys, in the order of the example.
pub(crate) fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    let mut section = String::new();
    let mut is_in_list = false;
    let mut about = String::new();
    let mut in_comment = false;
    for line in EXAMPLE.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = bare.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']));
            is_in_list = name.starts_with('[');
            in_comment = false;
            about.clear();
        } else if let Some((key, value)) = assignment(bare) {
            keys.push(Key {
                path: format!("{section}{key}"),
                is_in_list,
                value,
                is_default: !line.starts_with('#'),
                is_live: about.contains(LIVE),
                about: about.clone(),
            });
            in_comment = false;
        } else if line.starts_with('#') {
            if !in_comment {
                about.clear();
            }
            in_comment = true;
            about += bare;
        } else {
            in_comment = false;
        }
    }
    keys
}

/// What the comment of a key says that is heeded when it changes; [`RESTART`] of the others.
pub(super) const LIVE: &str = " Live.";
#[cfg(test)]
pub(super) const RESTART: &str = " Restart.";

/// The key and the value of a line that has both, and no blank before them.
fn assignment(line: &str) -> Option<(&str, Value)> {
    let (key, _) = line.split_once(" = ").filter(|_| !line.starts_with(' '))?;
    let mut table = line.parse::<Table>().ok()?;
    Some((key, table.remove(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_understood() {
        let keys = keys();
        let key = |path: &str| keys.iter().find(|key| key.path == path).unwrap();
        let port = key("relay.listen_port");
        assert!(port.is_default && !port.is_in_list && port.value == Value::Integer(4433));
        let quota = key("relay.tier.quota");
        assert!(!quota.is_default && quota.is_in_list, "{quota:?}");
        assert!(key("state_dir").value.is_str());
        assert!(key("guard.block").value.is_array());
    }

    #[test]
    fn r8_every_key_says_whether_a_change_is_live_or_needs_a_restart() {
        for key in keys() {
            let said = [LIVE, RESTART].map(|word| key.about.matches(word).count());
            assert!(matches!(said, [1, 0] | [0, 1]), "{}: {said:?} in {:?}", key.path, key.about);
        }
    }
}
