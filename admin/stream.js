// Server-sent events from a stream of text, and how long to wait before asking again. Touches no page.

/** More than this in one event is none that a relay sends. */
const MAX_EVENT_CHARS = 64 * 1024;

/** Makes events, `{name, data}` with the data parsed, of pieces of text as they come. */
export class Decoder {
  #rest = "";
  #name = "";
  #data = [];

  /** The events that this piece completes. Throws when it is no stream of events. */
  push(piece) {
    const lines = (this.#rest + piece).split(/\r\n|\n/);
    this.#rest = lines.pop();
    if (this.#rest.length + this.#data.join("").length > MAX_EVENT_CHARS) throw new Error("an endless event");
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line) {
    if (line === "") {
      const [name, lines] = [this.#name || "message", this.#data];
      [this.#name, this.#data] = ["", []];
      if (lines.length === 0) return [];
      const data = JSON.parse(lines.join("\n"));
      return [{ name, data }];
    }
    const colon = line.indexOf(":");
    if (colon === 0) return [];
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#name = value;
    if (field === "data") this.#data.push(value);
    return [];
  }
}

/** Twice as long each time, up to a limit, and never quite the same, so that many pages do not ask at once. */
export class Backoff {
  #failures = 0;

  constructor(firstMs, mostMs, random = Math.random) {
    this.firstMs = firstMs;
    this.mostMs = mostMs;
    this.random = random;
  }

  /** How long to wait after one more failure. */
  next() {
    const fullMs = Math.min(this.firstMs * 2 ** this.#failures, this.mostMs);
    this.#failures += 1;
    return fullMs * (0.75 + 0.25 * this.random());
  }

  /** All is well again. */
  reset() {
    this.#failures = 0;
  }
}

/** What a promise comes to, unless that takes longer than so long: whoever was asked has gone without a word. */
export async function within(promise, ms) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing came for ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits, or until the signal is given. */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) {
      resolve();
      return;
    }
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done);
  });
}
