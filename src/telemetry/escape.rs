//! One event, one line, and nothing in it that a terminal obeys.
//!
//! Some of what is logged was chosen by clients: an agent's name, the words of a connection's end. Whatever the place
//! that logs it does, here every character that would end a line, move a cursor or turn the direction of writing is
//! spelled out, so that nobody writes lines of their own for people, fail2ban or CrowdSec to read.

use std::{
    fmt::{self, Write as _},
    io,
};

use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FormatFields, MakeWriter,
        format::{DefaultFields, Writer},
    },
};

/// Whether a reader may take this for more than a letter: controls (C0, DEL, C1), line and paragraph separators,
/// marks and overrides of direction.
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Fields of text lines, hazards spelled as Rust does: `\n`, `\u{1b}`. Colours of the rest of a line are not touched.
#[derive(Debug, Default)]
pub(super) struct EscapedFields(DefaultFields);

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut text = String::new();
        self.0.format_fields(Writer::new(&mut text), fields)?;
        for c in text.chars() {
            if is_hazard(c) {
                write!(writer, "{}", c.escape_default())?;
            } else {
                writer.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// Lines of JSON, in which hazards can only be parts of strings: spelled as JSON does, `\u009b`.
#[derive(Debug)]
pub(super) struct EscapedJson<M>(pub(super) M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for EscapedJson<M> {
    type Writer = EscapedJson<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapedJson(self.0.make_writer())
    }
}

/// Each write is one line: the formatter makes it whole before it writes.
impl<W: io::Write> io::Write for EscapedJson<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        if !body.contains(is_hazard) {
            self.0.write_all(line)?;
            return Ok(line.len());
        }
        let mut escaped = String::with_capacity(line.len() + 64);
        for c in body.chars() {
            if is_hazard(c) {
                // None is beyond the first plane.
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            } else {
                escaped.push(c);
            }
        }
        escaped.push('\n');
        self.0.write_all(escaped.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
