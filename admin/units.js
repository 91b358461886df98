// How numbers are written, and which ones stand at an axis. Touches no page.

const PREFIXES = ["", "k", "M", "G", "T", "P"];

/** Three digits at most before a prefix: 0, 0.25, 7.1, 120, 20.5 k. */
export function short(number) {
  const [scaled, prefix] = scale(number);
  return prefix ? `${scaled} ${prefix}` : scaled;
}

/** Bytes, in powers of 1000: 512 B, 24.1 MB. */
export function bytes(number) {
  const [scaled, prefix] = scale(number);
  return `${scaled} ${prefix}B`;
}

/** The same without digits that say nothing: 6 k for 6.00 k, 2.5 MB for 2.50 MB. */
export function trimmed(text) {
  return text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
}

/** A count in full: 1 234 567. */
export function count(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** The two largest units: 3 d 4 h, 12 min 5 s. */
export function duration(secs) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, length]) => secs >= length);
  if (first < 0) return "0 s";
  const parts = [];
  let rest = Math.floor(secs);
  for (const [name, length] of units.slice(first, first + 2)) {
    const n = Math.floor(rest / length);
    rest -= n * length;
    if (n > 0) parts.push(`${n} ${name}`);
  }
  return parts.join(" ");
}

/** A name of the relay's, for people: over_rate, OVER_RATE -> over rate, OVER RATE. */
export function words(name) {
  return name.replaceAll("_", " ");
}

/** A moment of today, in local time: 14:03:10. */
export function clock(unixMs) {
  const at = new Date(unixMs);
  return [at.getHours(), at.getMinutes(), at.getSeconds()].map(twoDigits).join(":");
}

/** Any moment, in local time: 2026-11-20 14:03:10. */
export function moment(unixMs) {
  const at = new Date(unixMs);
  return `${at.getFullYear()}-${twoDigits(at.getMonth() + 1)}-${twoDigits(at.getDate())} ${clock(unixMs)}`;
}

/** How local time differs from the relay's log, which is in UTC: UTC, UTC+2, UTC-3:30. */
export function zone(unixMs) {
  const minutes = -new Date(unixMs).getTimezoneOffset();
  if (minutes === 0) return "UTC";
  const rest = Math.abs(minutes) % 60;
  return `UTC${minutes < 0 ? "-" : "+"}${Math.floor(Math.abs(minutes) / 60)}${rest === 0 ? "" : `:${twoDigits(rest)}`}`;
}

/** Round numbers from 0 to at least `highest`, at most five; without a higher one to 4. */
export function ticks(highest) {
  const top = Math.max(highest, 4);
  const least = top / 4;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= least * 0.999999);
  const marks = [0];
  while (marks.at(-1) < top) marks.push(marks.length * step);
  return marks;
}

function twoDigits(number) {
  return String(number).padStart(2, "0");
}

function scale(number) {
  let scaled = number;
  let power = 0;
  while (scaled >= 999.5 && power < PREFIXES.length - 1) {
    scaled /= 1000;
    power += 1;
  }
  const digits = scaled >= 99.95 || (power === 0 && Number.isInteger(scaled)) ? 0 : scaled >= 9.995 ? 1 : 2;
  return [scaled.toFixed(digits), PREFIXES[power]];
}
