// The view of what happens: events as they come, and what administrators did.

import { at, keep, make, write } from "./dom.js";
import { bytes, clock, count, duration, moment, words } from "./units.js";

/** Events that are kept. */
const MOST = 500;
/** They are shown together, so often: in a flood each alone would take all the time there is. */
const DRAW_MS = 250;
/** How often the audit log is read while nothing is heard of it. */
const AUDIT_MS = 10_000;
const LOOKS = { security: "warn", admin: "note", missed: "warn", allocation_created: "good" };

let session = null;
let events = [];
let number = 0;
let paused = false;
let auditAtMs = -Infinity;
let drawing = null;

/** Listens to what people do; `it` has the `api`, and `refresh()` asks anew. */
export function begin(it) {
  session = it;
  at("events-pause").addEventListener("click", () => {
    pause(!paused);
    draw();
  });
  at("events-clear").addEventListener("click", () => {
    events = [];
    draw(true);
  });
  at("audit-tail").addEventListener("change", () => {
    auditAtMs = -Infinity;
    session.refresh();
  });
}

/** Takes an event. */
export function heard(name, data) {
  if (name === "hello") return;
  number += 1;
  events.unshift({ number, name, atMs: data.at_unix_ms ?? session.nowMs(), text: describe(name, data) });
  events.length = Math.min(events.length, MOST);
  if (name === "admin") auditAtMs = -Infinity;
  if (!at("activity").hidden) drawing ??= setTimeout(draw, DRAW_MS);
}

/** How the stream of events is. */
export function streaming(look, text) {
  at("stream").className = `badge ${look}`;
  write(at("stream"), text);
}

/** Reads the audit log, and shows it and the events. */
export async function update() {
  draw();
  if (performance.now() - auditAtMs < AUDIT_MS) return;
  const { entries, total } = await session.api.get("admin/audit", { tail: at("audit-tail").value });
  auditAtMs = performance.now();
  keep(at("audit"), entries.toReversed(), ({ seq }) => String(seq), createEntry, () => {});
  at("audit-empty").hidden = entries.length > 0;
  write(at("audit-empty"), "No administrator has done anything yet.");
  write(at("audit-shown"), `${count(entries.length)} of ${count(total)}`);
}

/** Nothing is known any more. */
export function forget() {
  events = [];
  auditAtMs = -Infinity;
  pause(false);
  draw(true);
  at("audit").replaceChildren();
  write(at("audit-shown"), "");
  write(at("audit-empty"), "Asking …");
  at("audit-empty").hidden = false;
}

function pause(on) {
  paused = on;
  at("events-pause").setAttribute("aria-pressed", String(on));
  write(at("events-pause"), on ? "Go on" : "Pause");
}

function draw(anyway = false) {
  clearTimeout(drawing);
  drawing = null;
  if (paused && !anyway) return;
  keep(at("events"), events, (it) => String(it.number), createEvent, () => {});
  at("events-empty").hidden = events.length > 0;
}

function createEvent({ name, atMs, text }) {
  const time = make("time", { datetime: new Date(atMs).toISOString(), title: moment(atMs) }, clock(atMs));
  return make("li", {}, time, make("span", { class: `badge ${LOOKS[name] ?? ""}` }, words(name)), make("span", {}, text));
}

function createEntry({ at_unix_ms, actor, role, source, action, detail, outcome }) {
  const look = outcome === "done" ? "good" : "warn";
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, moment(at_unix_ms)),
    make("td", { title: role }, actor),
    make("td", {}, source),
    make("td", {}, words(action)),
    make("td", { class: "wrap" }, detail),
    make("td", {}, make("span", { class: `badge ${look}` }, words(outcome))),
  );
}

/** An event in a line of text. */
export function describe(name, data) {
  switch (name) {
    case "allocation_created":
      return `${data.id} by its ${data.by}, for device ${data.device_id}`;
    case "allocation_ended":
      return `${data.id}: ${data.code} after ${duration(data.lifetime_ms / 1000)}, ${bytes(data.bytes_used)}`;
    case "admin":
      return `${words(data.reason)}: ${data.detail}`;
    case "missed":
      return `${count(data.missed)} events of ${data.stream} went by unread`;
    default: {
      const { event, at_unix_ms, ...rest } = data;
      const said = Object.entries(rest).filter(([, value]) => value !== null && value !== "");
      const facts = said.map(([key, value]) => `${words(key)} ${typeof value === "object" ? JSON.stringify(value) : value}`);
      return [words(String(event ?? name)), ...facts].join(", ");
    }
  }
}
