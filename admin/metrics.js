// Reads Prometheus' text format, and makes rates of what counters say over time: how often, and for how long. Touches no
// page.

/** How often the relay is asked while somebody looks. */
export const PERIOD_MS = 1000;
/** What plots show. */
export const WINDOW_MS = 5 * 60_000;
/** A longer time between two answers is a hole in the plots. */
export const MAX_GAP_MS = 6000;

const NAME = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*$/;
const LABEL = /[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,[ \t]*|$)/y;
const SPECIAL = new Map([["+Inf", Infinity], ["-Inf", -Infinity], ["NaN", NaN]]);

/**
 * A scrape: from each metric's name to its samples, `{labels: Map, value: number}`.
 * Throws when a line is not in the format.
 */
export function parse(text) {
  const scrape = new Map();
  text.split("\n").forEach((line, index) => {
    if (line.trim() === "" || line.startsWith("#")) return;
    const found = NAME.exec(line);
    const value = found && parseValue(found[3]);
    const labels = found && parseLabels(found[2] ?? "");
    if (value === null || labels === null) throw new Error(`line ${index + 1} is no sample`);
    const samples = scrape.get(found[1]) ?? [];
    samples.push({ labels, value });
    scrape.set(found[1], samples);
  });
  return scrape;
}

function parseValue(text) {
  if (SPECIAL.has(text)) return SPECIAL.get(text);
  const value = Number(text);
  return Number.isNaN(value) ? null : value;
}

function parseLabels(text) {
  const labels = new Map();
  LABEL.lastIndex = 0;
  while (LABEL.lastIndex < text.length) {
    const found = LABEL.exec(text);
    if (!found) return null;
    labels.set(found[1], found[2].replace(/\\(.)/g, (_, escaped) => (escaped === "n" ? "\n" : escaped)));
  }
  return labels;
}

/** The sum of a metric's samples; null when the scrape has none. */
export function value(scrape, name) {
  const samples = scrape.get(name);
  return samples ? samples.reduce((sum, sample) => sum + sample.value, 0) : null;
}

/** From each value of a label to the sum of its samples; null when the scrape has none. */
export function byLabel(scrape, name, label) {
  const samples = scrape.get(name)?.filter((sample) => sample.labels.has(label));
  if (!samples?.length) return null;
  const sums = new Map();
  for (const { labels, value } of samples) {
    const key = labels.get(label);
    sums.set(key, (sums.get(key) ?? 0) + value);
  }
  return sums;
}

/** All values of a map together; null of null. */
export function total(sums) {
  return sums && [...sums.values()].reduce((sum, value) => sum + value, 0);
}

/**
 * Rates over the last `windowMs`. Where more than `maxGapMs` passed between two readings, or a counter fell
 * because the relay started anew, the rates are null: a hole in the plot rather than a guess.
 */
export class History {
  /** `{atMs, rates}`, oldest first; rates map a group to a map from key to rate per second. */
  points = [];
  #last = null;

  constructor(windowMs, maxGapMs) {
    this.windowMs = windowMs;
    this.maxGapMs = maxGapMs;
  }

  /** Adds a reading: an object from group to a map of counters, or to null when it is unknown. */
  push(atMs, counters) {
    const last = this.#last;
    const near = last !== null && atMs > last.atMs && atMs - last.atMs <= this.maxGapMs;
    this.points.push({ atMs, rates: near ? rates(last.counters, counters, atMs - last.atMs) : null });
    this.#last = { atMs, counters };
    const oldest = this.points.findIndex((point) => point.atMs >= atMs - this.windowMs);
    this.points.splice(0, oldest);
  }

  /** The rates of the newest reading, or null. */
  get latest() {
    return this.points.at(-1)?.rates ?? null;
  }
}

function rates(before, after, elapsedMs) {
  const groups = {};
  for (const [group, counters] of Object.entries(after)) {
    groups[group] = new Map();
    for (const [key, count] of counters ?? []) {
      const grown = count - (before[group]?.get(key) ?? 0);
      if (!(grown >= 0)) return null;
      groups[group].set(key, (grown * 1000) / elapsedMs);
    }
  }
  return groups;
}

/** The rate at which each of many counters grows, which come and go. */
export class Rates {
  #last = new Map();

  /** Takes `[key, count]` pairs as of now. Those that are not named any more are forgotten. */
  push(atMs, counts) {
    const now = new Map();
    for (const [key, count] of counts) {
      const last = this.#last.get(key);
      const grows = last !== undefined && atMs > last.atMs && count >= last.count;
      now.set(key, { atMs, count, rate: grows ? ((count - last.count) * 1000) / (atMs - last.atMs) : null });
    }
    this.#last = now;
  }

  /** Per second; null before there are two readings. */
  of(key) {
    return this.#last.get(key)?.rate ?? null;
  }
}
