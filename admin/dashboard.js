// The dashboard: who is signed in, which view is open, and when to ask the relay. The views are in modules of their own.

import * as activity from "./activity.js";
import * as allocations from "./allocations.js";
import { Api, isToken } from "./api.js";
import { ask, closeAll, tell } from "./dialog.js";
import { at, write } from "./dom.js";
import * as guard from "./guard.js";
import * as log from "./log.js";
import { PERIOD_MS } from "./metrics.js";
import * as overview from "./overview.js";
import { Backoff, Decoder, sleep, within } from "./stream.js";
import { clock, count, duration, zone } from "./units.js";

/** A stream of events says something at least every 15 s. */
const SILENCE_MS = 40_000;
/** Where the token is kept: as long as the tab, and for this page alone. */
const TOKEN_KEY = "zrc-relay.admin-token";
const VIEWS = { overview: [overview], allocations: [allocations], guard: [guard], activity: [activity, log] };
const FIRST_VIEW = "overview";

/** What the views ask with; `api` is null while nobody is signed in. */
const session = {
  api: null,
  /** Asks anew, at once. */
  refresh: () => wake?.abort(),
  /** The relay's clock, unix milliseconds. */
  nowMs: () => Date.now() + offsetMs,
  /** Whether the token may only look. */
  readOnly: () => readOnly,
};

let offsetMs = 0;
let readOnly = false;
/** Ends all that was begun for whoever is signed in. */
let signedIn = null;
/** Ends the wait before the next question. */
let wake = null;
let wasDraining = false;

for (const view of Object.values(VIEWS).flat()) view.begin?.(session);
addEventListener("hashchange", openView);
document.addEventListener("visibilitychange", () => session.refresh());
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.altKey || event.metaKey || at("allocations").hidden) return;
  event.preventDefault();
  at("find-text").focus();
});
at("sign-in-form").addEventListener("submit", submitToken);
at("sign-out").addEventListener("click", () => signOut(""));
at("drain").addEventListener("click", askDrain);

const kept = sessionStorage.getItem(TOKEN_KEY);
if (kept === null) showSignIn("");
else signIn(kept);

async function submitToken(event) {
  event.preventDefault();
  const token = at("token").value.trim();
  const button = at("sign-in-button");
  if (!isToken(token)) {
    showSignIn("This cannot be a token: it has no blanks, and letters of English only.");
    return;
  }
  button.disabled = true;
  write(button, "One moment …");
  at("sign-in-said").hidden = true;
  try {
    await new Api(token).get("admin/stats");
    sessionStorage.setItem(TOKEN_KEY, token);
    at("sign-in-form").reset();
    signIn(token);
  } catch (error) {
    await explain(error);
  } finally {
    button.disabled = false;
    write(button, "Sign in");
  }
}

/** Says why nobody is let in, and what to do. */
async function explain(error) {
  switch (error.kind) {
    case "token":
      showSignIn("This token is not good. Check that all of it was copied, and that it has not been revoked.");
      at("token").select();
      break;
    case "off":
      showSignIn(
        "The admin API does not answer here. It is off by default, and has a port of its own: " +
          "set listen_addr in [admin] of the configuration, and open the address that the relay then prints.",
      );
      break;
    case "gone":
      showSignIn(`${error.message} Is it running, and is this its address?`);
      break;
    case "throttled":
      showSignIn(`${error.message} You can try again in ${duration(error.retrySecs)}.`);
      for (let secs = error.retrySecs; secs > 0; secs -= 1) {
        write(at("sign-in-button"), `Wait ${secs} s`);
        await sleep(1000);
      }
      showSignIn("Now you can try again.");
      break;
    default:
      showSignIn(error.message);
  }
}

function showSignIn(text) {
  document.title = "zrc-relay dashboard: sign in";
  at("sign-in").hidden = false;
  at("sign-in-said").hidden = text === "";
  write(at("sign-in-said"), text);
  setState("unknown", "Signed out");
  if (document.activeElement === document.body) at("token").focus();
}

function signIn(token) {
  session.api = new Api(token);
  signedIn = new AbortController();
  at("sign-in").hidden = true;
  at("views").hidden = false;
  at("actions").hidden = false;
  setState("unknown", "Asking …");
  openView();
  watch(signedIn.signal);
  listen(signedIn.signal);
}

function signOut(text) {
  sessionStorage.removeItem(TOKEN_KEY);
  signedIn?.abort();
  session.api?.end();
  session.api = null;
  session.refresh();
  closeAll();
  for (const view of Object.values(VIEWS).flat()) view.forget();
  at("views").hidden = true;
  at("actions").hidden = true;
  at("notice").hidden = true;
  setReadOnly(false);
  // Whoever comes next may be somebody else.
  for (const id of ["version", "nav-allocations", "nav-blocks", "updated", "told", "kill-id", "unblock-network"]) write(at(id), "");
  write(at("name"), "zrc-relay");
  write(at("region"), "QUIC relay");
  at("told").hidden = true;
  showSignIn(text);
  at("token").focus();
}

/** Opens the view that the address names. */
function openView() {
  const named = location.hash.replace(/^#\//, "");
  const open = Object.hasOwn(VIEWS, named) ? named : FIRST_VIEW;
  for (const name of Object.keys(VIEWS)) at(name).hidden = name !== open;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${open}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  session.refresh();
}

/** Asks the relay again and again until signed out; less often while it does not answer. */
async function watch(signal) {
  const backoff = new Backoff(1000, 15_000);
  let failingSince = null;
  while (!signal.aborted) {
    const nextMs = performance.now() + PERIOD_MS;
    wake = new AbortController();
    let waitMs = null;
    if (!document.hidden) {
      try {
        await update(signal);
        if (signal.aborted) return;
        backoff.reset();
        failingSince = null;
        at("views").classList.remove("stale");
      } catch (error) {
        if (signal.aborted) return;
        if (error.kind === "token") {
          signOut("You have been signed out: the token is not good any more.");
          return;
        }
        if (error.kind === undefined) console.error(error);
        failingSince ??= clock(Date.now());
        waitMs = backoff.next();
        showFailure(error, failingSince, waitMs);
      }
    }
    // While nobody looks there is nothing to ask: becoming visible wakes this.
    const restMs = document.hidden ? 2 ** 31 - 1 : (waitMs ?? Math.max(nextMs - performance.now(), 0));
    await sleep(restMs, wake.signal);
  }
}

async function update(signal) {
  const stats = await session.api.get("admin/stats");
  if (signal.aborted) return;
  offsetMs = stats.at_unix_ms - Date.now();
  showStats(stats);
  overview.show(stats);
  guard.showStats(stats);
  for (const [name, views] of Object.entries(VIEWS)) {
    for (const view of views) if (!at(name).hidden && !signal.aborted) await view.update?.();
  }
}

function showStats(stats) {
  write(at("name"), stats.relay.server_name);
  write(at("region"), stats.relay.region ?? "QUIC relay");
  write(at("version"), stats.version);
  write(at("nav-allocations"), count(stats.allocations.now));
  write(at("nav-blocks"), stats.guard.blocks > 0 ? count(stats.guard.blocks) : "");
  if (stats.caller !== undefined) setReadOnly(stats.caller.role === "read");
  write(at("updated"), `Updated at ${clock(stats.at_unix_ms)} ${zone(stats.at_unix_ms)}, every second while this page is visible.`);
  const { draining, deadline_unix_ms } = stats.drain;
  const failing = stats.checks.find(({ ok }) => !ok);
  if (draining) setState("draining", "Draining");
  else if (stats.ready) setState("ready", "Ready");
  else setState("waiting", `Not ready: ${failing?.detail ?? "it does not say why"}`);
  document.title = `${stats.relay.server_name}: ${at("state").textContent}`;
  if (draining) {
    const over = deadline_unix_ms === null || deadline_unix_ms <= stats.at_unix_ms;
    const end = over ? "allocations have been ended" : `allocations end at ${clock(deadline_unix_ms)}`;
    showNotice("warn", `The relay is being emptied: whoever comes is refused, and ${end}.`);
  } else {
    at("notice").hidden = true;
  }
  wasDraining = draining;
  write(at("drain"), draining ? "Stop draining …" : "Drain …");
}

function showFailure(error, since, waitMs) {
  const secs = Math.ceil(waitMs / 1000);
  const again = `Asking again in ${secs} s.`;
  at("views").classList.add("stale");
  const before = `What is shown is from before ${since}.`;
  switch (error.kind) {
    case "gone":
      setState("lost", "Not answering");
      showNotice("", `${error.message} ${before} ${again}`, "Ask now", session.refresh);
      break;
    case "off":
      setState("lost", "No admin API");
      showNotice("", `The admin API does not answer here any more. ${before} ${again}`, "Ask now", session.refresh);
      break;
    case undefined:
      // An answer of another shape than this page knows. The next one may be better.
      showNotice("", `This page cannot show what the relay answers: ${error.message}. ${again}`, "Ask now", session.refresh);
      break;
    default:
      showNotice("", `${error.message} ${before} ${again}`, "Ask now", session.refresh);
  }
  document.title = `${at("name").textContent}: ${at("state").textContent}`;
}

/** Says something above all views, with what can be done about it here, if anything. */
function showNotice(look, text, action = null, act = null) {
  const notice = at("notice");
  let button = notice.querySelector("button");
  if (!button) {
    button = document.createElement("button");
    button.type = "button";
    notice.replaceChildren(document.createElement("span"), " ", button);
  }
  notice.hidden = false;
  notice.className = `notice ${look}`;
  write(notice.firstElementChild, text);
  button.hidden = action === null;
  write(button, action ?? "");
  button.onclick = act;
}

function setState(state, text) {
  at("state").dataset.state = state;
  write(at("state"), text);
}

/** With a token that may only look, nothing can be pressed that does more. */
function setReadOnly(now) {
  readOnly = now;
  at("role").hidden = !now;
  for (const button of document.querySelectorAll(".act")) button.disabled = now;
}

/** Hears events until signed out; again, later and later, when the stream breaks. */
async function listen(signal) {
  const backoff = new Backoff(1000, 30_000);
  while (!signal.aborted) {
    activity.streaming("", "connecting");
    let why = "the stream ended";
    const attempt = new AbortController();
    const end = () => attempt.abort();
    signal.addEventListener("abort", end);
    try {
      const response = await within(session.api.events(attempt.signal), SILENCE_MS);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const decoder = new Decoder();
      activity.streaming("good", "live");
      const read = () => within(reader.read(), SILENCE_MS);
      for (let piece = await read(); !piece.done; piece = await read()) {
        // What came before is nothing to who comes next.
        if (signal.aborted) return;
        for (const { name, data } of decoder.push(piece.value)) {
          if (name === "hello") backoff.reset();
          hear(name, data);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      // Whoever watches says it, and asks for another token.
      if (error.kind === "token") return;
      why = error.message;
    } finally {
      signal.removeEventListener("abort", end);
      end();
    }
    const waitMs = backoff.next();
    activity.streaming("warn", `again in ${Math.ceil(waitMs / 1000)} s`);
    at("stream").title = why;
    await sleep(waitMs, signal);
  }
}

function hear(name, data) {
  activity.heard(name, data);
  log.heard(name);
  allocations.heard(name, data);
}

function askDrain() {
  if (wasDraining) {
    askUndrain();
    return;
  }
  ask(at("ask-drain"), async () => {
    await session.api.post("admin/drain", { deadline_secs: Number(at("drain-secs").value) });
    tell("The relay is being emptied.");
    session.refresh();
  });
}

function askUndrain() {
  ask(at("ask-undrain"), async () => {
    try {
      await session.api.delete("admin/drain");
    } catch (error) {
      if (error.kind !== "missing") throw error;
    }
    tell("The relay takes clients again.");
    session.refresh();
  });
}
