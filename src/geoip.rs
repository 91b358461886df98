//! Which country an address is in, by a database of the operator's choice: a MaxMind DB, as MaxMind, DB-IP and IPinfo
//! publish them. Bytes in, countries out.
//!
//! The database is the operator's, and it comes from elsewhere: whatever is in it, a country is two capital letters or
//! [`Country::UNKNOWN`], so that it can be a label of metrics.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use maxminddb::{LookupResult, PathElement, Reader};

/// A country as ISO 3166-1 names it in two letters, or none that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Country(Option<[u8; 2]>);

impl Country {
    /// What is said of addresses that the database does not have, or has no country for.
    pub const UNKNOWN: Self = Self(None);
    /// How many there can be, [`Country::UNKNOWN`] among them.
    pub const COUNT: usize = 26 * 26 + 1;

    /// Two capital letters; anything else is no country.
    fn new(code: &str) -> Option<Self> {
        match code.as_bytes() {
            &[a, b] if a.is_ascii_uppercase() && b.is_ascii_uppercase() => Some(Self(Some([a, b]))),
            _ => None,
        }
    }

    /// Below [`Country::COUNT`], for each another one.
    pub fn index(self) -> usize {
        let letter = |letter: u8| usize::from(letter.saturating_sub(b'A'));
        self.0.map_or(Self::COUNT - 1, |[a, b]| letter(a) * 26 + letter(b))
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some([a, b]) => write!(f, "{}{}", char::from(a), char::from(b)),
            None => f.write_str("unknown"),
        }
    }
}

/// Where databases have the code: MaxMind and DB-IP, IPinfo, older ones of IPinfo's, and where MaxMind knows only to
/// whom the network was given.
const PLACES: [&[PathElement<'static>]; 4] = [
    &[PathElement::Key("country"), PathElement::Key("iso_code")],
    &[PathElement::Key("country_code")],
    &[PathElement::Key("country")],
    &[PathElement::Key("registered_country"), PathElement::Key("iso_code")],
];

/// What the names of databases have in them that know countries, whatever else they know; in small letters.
const OF_COUNTRIES: [&str; 4] = ["country", "city", "enterprise", "location"];
/// The same of databases of something else.
const OF_OTHERS: [&str; 8] =
    ["asn", "isp", "domain", "anonymous", "connection-type", "privacy", "user-count", "static-ip-score"];

/// What its maker calls a database is cut after so many characters.
const MAX_KIND_CHARS: usize = 60;

/// Why a file is no database of countries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// It is no MaxMind DB.
    #[error("is no database in MaxMind's format (MMDB): {0}")]
    Format(String),
    /// It is one of something else, as of autonomous systems: every client would be from an unknown country.
    #[error("is a database without countries, {kind}: there are such of countries and of cities")]
    NoCountries {
        /// What its maker calls it, as `GeoLite2-ASN`, printable and cut.
        kind: String,
    },
}

/// A database, whole in memory.
pub struct Database {
    reader: Reader<Vec<u8>>,
    is_doubtful: bool,
}

/// Of the same maker and time.
impl PartialEq for Database {
    fn eq(&self, other: &Self) -> bool {
        (self.kind(), self.built_at_unix()) == (other.kind(), other.built_at_unix())
    }
}

impl Database {
    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, DatabaseError> {
        let reader = Reader::from_source(bytes).map_err(|error| DatabaseError::Format(error.to_string()))?;
        let mut database = Self { reader, is_doubtful: false };
        let (has_records, has_countries) = database.sampled();
        if !has_countries {
            let kind = database.kind().to_ascii_lowercase();
            let is_any_of = |names: &[&str]| names.iter().any(|name| kind.contains(name));
            if !is_any_of(&OF_COUNTRIES) && (has_records || is_any_of(&OF_OTHERS)) {
                let kind = database.kind().escape_debug().take(MAX_KIND_CHARS).collect();
                return Err(DatabaseError::NoCountries { kind });
            }
            database.is_doubtful = true;
        }
        Ok(database)
    }

    /// Whether some of [`samples`] are known to it, and of any the country. Takes some milliseconds at most; to walk
    /// through all of it could take for ever, whoever has made it.
    fn sampled(&self) -> (bool, bool) {
        let mut has_records = false;
        for ip in samples() {
            let Ok(found) = self.reader.lookup(ip) else { continue };
            if PLACES.into_iter().any(|place| code(&found, place).is_some()) {
                return (true, true);
            }
            has_records |= found.has_data();
        }
        (has_records, false)
    }

    /// Whether it may well have no countries: none was found among some thousand addresses, and nothing says that it is of
    /// something else.
    pub fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Where this address is said to be. IPv4-mapped ones count as IPv4. Takes microseconds.
    pub fn country(&self, ip: IpAddr) -> Country {
        let Ok(found) = self.reader.lookup(ip.to_canonical()) else { return Country::UNKNOWN };
        PLACES.into_iter().find_map(|place| code(&found, place)).unwrap_or(Country::UNKNOWN)
    }

    /// What its maker calls it, as `GeoLite2-Country`.
    pub fn kind(&self) -> &str {
        &self.reader.metadata().database_type
    }

    /// When it was made, in Unix seconds.
    pub fn built_at_unix(&self) -> u64 {
        self.reader.metadata().build_epoch
    }
}

/// Some 5500 addresses all over, and those that networks of one's own have. A country is found among the first, where the
/// database has countries.
fn samples() -> impl Iterator<Item = IpAddr> {
    let v4 = |a: u8, b: u8, c: u8| IpAddr::from(Ipv4Addr::new(a, b, c, 1));
    let public = (0..=255).step_by(16).flat_map(move |b| (1..=223).map(move |a| v4(a, b, 1)));
    let allocated = (0x2000..0x3000).step_by(0x100);
    let public_v6 = allocated.flat_map(|a| {
        let ip = move |b| IpAddr::from(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 1));
        (0..=u16::MAX).step_by(0x400).map(ip)
    });
    let private = (0..=255).flat_map(move |n| [v4(10, n, 0), v4(172, n, 0), v4(192, 168, n)]);
    public.chain(public_v6).chain(private)
}

/// What stands there, if it is a country.
fn code(found: &LookupResult<'_, Vec<u8>>, place: &[PathElement<'_>]) -> Option<Country> {
    found.decode_path::<&str>(place).ok().flatten().and_then(Country::new)
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, made at {}", self.kind(), self.built_at_unix())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn bytes() -> Vec<u8> {
        fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/countries.mmdb")).unwrap()
    }

    fn addresses() -> Vec<IpAddr> {
        ["127.0.0.1", "::1", "192.0.2.1", "192.0.2.200", "198.51.100.70", "2001:db8::1", "ffff::", "::"]
            .map(|ip| ip.parse().unwrap())
            .to_vec()
    }

    #[test]
    fn r7_2_the_usual_databases_are_understood_and_nothing_else_is_a_country() {
        let database = Database::new(bytes()).unwrap();
        for (ip, country) in [
            ("127.0.0.1", "AQ"),
            ("::ffff:127.0.0.1", "AQ"),
            ("::1", "BV"),
            ("192.0.2.1", "HM"),
            ("192.0.2.200", "TF"),
            ("2001:db8::1", "GS"),
            ("198.51.100.1", "unknown"),
            ("198.51.100.70", "unknown"),
            ("198.51.100.130", "unknown"),
            ("198.51.100.200", "unknown"),
            ("203.0.113.1", "unknown"),
            ("203.0.113.200", "unknown"),
            ("2001:db8:8000::1", "unknown"),
            ("2001:db9::1", "unknown"),
        ] {
            assert_eq!(database.country(ip.parse().unwrap()).to_string(), country, "{ip}");
        }
        assert_eq!(database.kind(), "zrc-relay-test");
        assert!(database.built_at_unix() > 1_700_000_000);
    }

    /// The same networks, and nothing of theirs stands where countries do.
    fn without_countries() -> Vec<u8> {
        let mut other = bytes();
        let places: Vec<usize> = (0..other.len()).filter(|at| other[*at..].starts_with(b"country")).collect();
        assert!(places.len() > 2);
        for at in places {
            other[at + 1] = b'0';
        }
        other
    }

    /// Called otherwise by its maker.
    fn named(mut bytes: Vec<u8>, name: &[u8; 14]) -> Vec<u8> {
        let at = bytes.windows(14).position(|text| text == b"zrc-relay-test").unwrap();
        bytes[at..at + 14].copy_from_slice(name);
        bytes
    }

    #[test]
    fn r7_2_a_database_is_refused_only_when_it_is_surely_one_of_something_else() {
        // Its countries may be of addresses that nobody has tried.
        for name in [b"Our-CITY-codes", b"GeoIP2-Country", b"my country_asn"] {
            let database = Database::new(named(without_countries(), name)).unwrap();
            assert!(database.is_doubtful(), "{database:?}");
        }
        // Where there are countries, no name matters.
        for name in [b"GeoLite2-ASN-2", b"zrc-relay-test"] {
            assert!(!Database::new(named(bytes(), name)).unwrap().is_doubtful());
        }
        assert!(Database::new(named(without_countries(), b"GeoLite2-ASN-2")).is_err());
        // Nothing is known of any address that is tried.
        let empty = |name| named(empty(), name);
        assert!(Database::new(empty(b"zrc-relay-test")).unwrap().is_doubtful());
        for name in [b"GeoLite2-ASN-2", b"GeoIP2-ISP-abc", b"anonymous-plus"] {
            let Err(DatabaseError::NoCountries { kind }) = Database::new(empty(name)) else {
                panic!("taken")
            };
            assert_eq!(kind.as_bytes(), name);
        }
    }

    /// A database that knows no address.
    fn empty() -> Vec<u8> {
        let text = |text: &str| {
            let mut field = vec![0x40 | u8::try_from(text.len()).unwrap()];
            field.extend(text.as_bytes());
            field
        };
        // A map of nine: all that the format asks for.
        let mut meta = vec![0xe9];
        for (name, number) in [
            ("node_count", [0xc1, 1]),
            ("record_size", [0xa1, 24]),
            ("ip_version", [0xa1, 6]),
            ("binary_format_major_version", [0xa1, 2]),
            ("binary_format_minor_version", [0xa1, 0]),
        ] {
            meta.extend(text(name).into_iter().chain(number));
        }
        meta.extend(text("build_epoch").into_iter().chain([0x01, 0x02, 1]));
        meta.extend(text("database_type").into_iter().chain(text("zrc-relay-test")));
        meta.extend(text("languages").into_iter().chain([0x00, 0x04]));
        meta.extend(text("description").into_iter().chain([0xe0]));
        let marker = b"\xab\xcd\xefMaxMind.com";
        // One node, neither of whose sides leads anywhere, and what stands between it and data.
        let node = [0, 0, 1, 0, 0, 1];
        node.into_iter().chain([0; 16]).chain(marker.iter().copied()).chain(meta).collect()
    }

    #[test]
    fn r7_2_a_database_without_countries_is_none_of_them() {
        let mut other = without_countries();
        let Err(DatabaseError::NoCountries { kind }) = Database::new(other.clone()) else { panic!("taken") };
        assert_eq!(kind, "zrc-relay-test");
        // Its name is its maker's.
        let name = other.windows(14).position(|text| text == b"zrc-relay-test").unwrap();
        other[name..name + 3].copy_from_slice(b"\x1b\n\"");
        let Err(DatabaseError::NoCountries { kind }) = Database::new(other) else { panic!("taken") };
        assert!(kind.chars().all(|c| !c.is_control()) && kind.ends_with("-relay-test"), "{kind}");
        assert!(matches!(Database::new(Vec::new()), Err(DatabaseError::Format(_))));
    }

    #[test]
    fn each_country_has_an_index_of_its_own() {
        let mut seen = vec![false; Country::COUNT];
        let letters = || b'A'..=b'Z';
        let all = letters().flat_map(|a| letters().map(move |b| Country(Some([a, b]))));
        for country in all.chain([Country::UNKNOWN]) {
            assert!(!std::mem::replace(&mut seen[country.index()], true), "{country}");
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn r7_2_a_database_that_is_cut_short_is_none_or_answers() {
        let whole = bytes();
        for len in 0..whole.len() {
            if let Ok(database) = Database::new(whole[..len].to_vec()) {
                addresses().into_iter().for_each(|ip| drop(database.country(ip).to_string()));
            }
        }
        assert!(Database::new(Vec::new()).is_err());
        assert!(Database::new(b"\xab\xcd\xefMaxMind.com".to_vec()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn r7_2_a_hostile_database_makes_nobody_panic_or_wait(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            more in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut changed = bytes();
            for (at, to) in changes {
                let at = at.index(changed.len());
                changed[at] = to;
            }
            changed.extend(more);
            if let Ok(database) = Database::new(changed) {
                for ip in addresses() {
                    let said = database.country(ip).to_string();
                    prop_assert!(said == "unknown" || said.len() == 2 && said.bytes().all(|b| b.is_ascii_uppercase()));
                }
                let _ = format!("{database:?}");
            }
        }
    }
}
