//! From when until when a certificate is valid (RFC 5280, section 4.1.2.5). TLS checks it, and does not tell.

/// A day, in seconds.
const DAY_SECS: i64 = 86_400;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version, where it is not 1.
const VERSION: u8 = 0xa0;

/// `notBefore` and `notAfter` in Unix seconds; `None` when this is not the DER of a certificate.
pub(super) fn of(certificate: &[u8]) -> Option<(i64, i64)> {
    let mut certificate = Der(certificate).open(SEQUENCE)?;
    let mut fields = certificate.open(SEQUENCE)?;
    // The version may be left out.
    let _ = fields.open(VERSION);
    fields.open(INTEGER)?;
    let (_algorithm, _issuer) = (fields.open(SEQUENCE)?, fields.open(SEQUENCE)?);
    let mut validity = fields.open(SEQUENCE)?;
    Some((validity.time()?, validity.time()?))
}

/// What of a piece of DER has not been read yet.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value, if it has this tag.
    fn open(&mut self, tag: u8) -> Option<Der<'a>> {
        let (found, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (len, rest) = match first & 0x7f {
            short if *first < 0x80 => (usize::from(short), rest),
            // The length of the length; no certificate needs more.
            bytes @ 1..=4 => {
                let (len, rest) = rest.split_at_checked(usize::from(bytes))?;
                (len.iter().fold(0, |len, byte| (len << 8) | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        if *found != tag {
            return None;
        }
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some(Der(value))
    }

    /// `YYMMDDHHMMSSZ` or, from 2050 on, `YYYYMMDDHHMMSSZ`.
    fn time(&mut self) -> Option<i64> {
        let (text, years) = match self.open(UTC_TIME) {
            Some(text) => (text.0, 2),
            None => (self.open(GENERALIZED_TIME)?.0, 4),
        };
        let digits = text.strip_suffix(b"Z")?;
        if digits.len() != years + 10 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let (year, rest) = digits.split_at_checked(years)?;
        let number = |digits: &[u8]| digits.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        let mut year = number(year);
        if years == 2 {
            year += if year < 50 { 2000 } else { 1900 };
        }
        let mut parts = rest.chunks(2).map(number);
        let (month, day) = (parts.next()?, parts.next()?);
        let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        Some(days_since_1970(year, month, day) * DAY_SECS + hours * 3600 + minutes * 60 + seconds)
    }
}

/// In the Gregorian calendar. Years are counted from March, so that the leap day is their last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months_since_march = (month + 9) % 12;
    let day_of_year = (153 * months_since_march + 2) / 5 + day - 1;
    // From 0000-03-01 to 1970-01-01.
    const BEFORE_1970: i64 = 719_468;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - BEFORE_1970
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_ways_to_write_a_time_are_read() {
        for (from, until) in [
            ((1970, 1, 1), (2049, 12, 31)),
            ((2000, 2, 29), (2050, 1, 1)),
            ((1999, 12, 31), (4096, 1, 1)),
            ((2026, 11, 20), (2100, 3, 1)),
        ] {
            let expected = |(year, month, day)| rcgen::date_time_ymd(year, month, day).unix_timestamp();
            assert_eq!(of(&certificate(from, until)), Some((expected(from), expected(until))));
        }
    }

    #[test]
    fn what_is_cut_short_is_no_certificate() {
        let whole = certificate((2000, 1, 1), (2030, 1, 1));
        for len in 0..whole.len() {
            assert_eq!(of(&whole[..len]), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
            let _ = of(&bytes);
            let mut changed = certificate((2000, 1, 1), (2030, 1, 1));
            let at = at.index(changed.len());
            changed[at] ^= bytes.first().copied().unwrap_or(1);
            let _ = of(&changed);
        }
    }
}
