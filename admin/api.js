// Asks the admin API, with the token, and says in words for people what went wrong. Touches no page.

/** An answer that takes longer is none. */
const ANSWER_MS = 5000;
/** The same where something is done: that is answered when the audit log is on disk, or by the relay itself after 10 s. */
const DONE_MS = 12_000;

/**
 * Why there is no answer: `gone` (nobody answers), `off` (somebody does, who knows no admin API), `token` (it is not
 * good), `throttled` (too many that were not), `role` (it may look and not touch), `missing` (no such thing),
 * `over` (who asked has signed out), or `refused` (anything else).
 */
export class Failure extends Error {
  constructor(kind, message, retrySecs = null) {
    super(message);
    this.kind = kind;
    /** For `throttled`, how long. */
    this.retrySecs = retrySecs;
  }
}

/** What an answer that is none means. `detail` is what the relay says of it, if it was the relay. */
export function failure(path, status, detail, retryAfter) {
  if (status === 401) return new Failure("token", "The token is not good.");
  if (status === 403) return new Failure("role", "This token may look and not touch.");
  if (status === 429) {
    const secs = Number(retryAfter) > 0 ? Math.ceil(Number(retryAfter)) : 60;
    return new Failure("throttled", "Too many wrong tokens came from this address.", secs);
  }
  // Every relay with an admin API has statistics.
  if (status === 404 && (path === "admin/stats" || detail === null)) {
    return new Failure("off", "There is no admin API here.");
  }
  if (status === 404) return new Failure("missing", sentence(detail));
  if (detail === null && [502, 503, 504].includes(status)) {
    return new Failure("gone", `A proxy answers in the relay's place (status ${status}).`);
  }
  return new Failure("refused", detail === null ? `The answer has status ${status}.` : sentence(detail));
}

/** As people begin and end one. */
function sentence(text) {
  const end = /[.!?]$/.test(text) ? "" : ".";
  return text.charAt(0).toUpperCase() + text.slice(1) + end;
}

export class Api {
  /** Kept here, sent as a header, and nowhere else. */
  #token;
  #ended = false;

  constructor(token) {
    this.#token = token;
  }

  /** Whoever asked has signed out: no answer is given any more, not even one that is on its way. */
  end() {
    this.#ended = true;
  }

  get(path, query = {}) {
    return this.#ask("GET", path, query);
  }

  post(path, body) {
    return this.#ask("POST", path, {}, body);
  }

  put(path, body) {
    return this.#ask("PUT", path, {}, body);
  }

  delete(path, query = {}) {
    return this.#ask("DELETE", path, query);
  }

  /** The stream of events: a response whose body goes on. */
  async events(signal) {
    const response = await this.#fetch("GET", "admin/events", {}, undefined, signal);
    if (!response.ok) throw await refusal("admin/events", response);
    return response;
  }

  async #ask(method, path, query, body) {
    try {
      const answer = await this.#answer(method, path, query, body);
      if (!this.#ended) return answer;
    } catch (error) {
      // Why it was refused is an answer, too.
      if (!this.#ended) throw error;
    }
    throw new Failure("over", "You have signed out.");
  }

  async #answer(method, path, query, body) {
    const response = await this.#fetch(method, path, query, body, AbortSignal.timeout(method === "GET" ? ANSWER_MS : DONE_MS));
    if (!response.ok) throw await refusal(path, response);
    const text = await response.text().catch(() => {
      throw new Failure("gone", "The answer broke off.");
    });
    if (response.status === 204) return null;
    try {
      return JSON.parse(text);
    } catch {
      // A proxy's page, say.
      throw new Failure("off", "What answers here is no admin API.");
    }
  }

  async #fetch(method, path, query, body, signal) {
    const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null));
    const headers = { authorization: `Bearer ${this.#token}` };
    if (body !== undefined) headers["content-type"] = "application/json";
    const init = { method, headers, signal, body: JSON.stringify(body), cache: "no-store", credentials: "omit" };
    try {
      return await fetch(wanted.size > 0 ? `${path}?${wanted}` : path, { ...init, redirect: "error" });
    } catch {
      throw new Failure("gone", "No answer from the relay.");
    }
  }
}

async function refusal(path, response) {
  let detail = null;
  if (response.headers.get("content-type")?.startsWith("application/problem+json")) {
    const problem = await response.json().catch(() => null);
    if (typeof problem?.detail === "string") detail = problem.detail;
  }
  return failure(path, response.status, detail, response.headers.get("retry-after"));
}

/** Whether this can be a token at all: what else is in it could not be sent in a header. */
export function isToken(text) {
  return /^[\x21-\x7e]{1,256}$/.test(text);
}
