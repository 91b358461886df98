// Asks the relay how it is, once a second while someone looks, and shows the answer.

import { at, fill, list, write } from "./dom.js";
import { History, MAX_GAP_MS, PERIOD_MS, WINDOW_MS, byLabel, parse, total, value } from "./metrics.js";
import { Plot } from "./plot.js";
import { bytes, count, duration, short, words } from "./units.js";

/** An answer that takes longer is none. */
const ANSWER_MS = 4000;

/** Asked every time; when none of them answers, the relay does not. */
const POLLED = ["/metrics", "/ready", "/health"];

/** What the list of totals shows. `bug` marks what should stay 0. */
const TOTALS = [
  { label: "Connections opened", name: "zrc_relay_connections_opened_total" },
  { label: "Handshakes not finished", name: "zrc_relay_handshakes_failed_total" },
  { label: "Handshakes turned away", name: "zrc_relay_handshakes_refused_total" },
  { label: "Addresses doubted", name: "zrc_relay_handshakes_retried_total" },
  { label: "Allocations created", name: "zrc_relay_allocations_created_total" },
  { label: "Streams opened", name: "zrc_relay_streams_spliced_total" },
  { label: "Raw channels now", name: "zrc_relay_raw_channels" },
  { label: "Datagrams sent raw", name: "zrc_relay_forwarded_raw_datagrams_total" },
  { label: "Address changes", name: "zrc_relay_migrations_total" },
  { label: "Session panics", name: "zrc_relay_session_panics_total", bug: true },
  { label: "Packet panics", name: "zrc_relay_socket_panics_total", bug: true },
];

const perSecond = (number) => `${bytes(number)}/s`;

const history = new History(WINDOW_MS, MAX_GAP_MS);
const plots = {
  datagrams: new Plot(at("plot-datagrams"), WINDOW_MS, short),
  bytes: new Plot(at("plot-bytes"), WINDOW_MS, bytes),
  drops: new Plot(at("plot-drops"), WINDOW_MS, short),
};
/** What /.well-known/zrc-relay said; asked again after a failure or a restart. */
let descriptor = null;
let lastUptimeSecs = 0;
/** When answers began to fail, as people read it; null while all is well. */
let failingSince = null;

/** The answer's text; an error with a message for people when there is none of that status. */
async function ask(path, statuses = [200]) {
  let response;
  let text;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
    text = await response.text();
  } catch {
    throw new Error("no answer");
  }
  if (!statuses.includes(response.status)) throw new Error(`status ${response.status}`);
  return text;
}

async function askJson(path, statuses) {
  const text = await ask(path, statuses);
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("no JSON");
  }
}

async function update() {
  const asked = {
    "/metrics": ask("metrics").then(parse),
    // 503 is an answer: not now.
    "/ready": askJson("ready", [200, 503]),
    // So is this: stuck, and why.
    "/health": askJson("health", [200, 503]),
    "descriptor": descriptor ?? askJson(".well-known/zrc-relay"),
  };
  const answers = await Promise.allSettled(Object.values(asked));
  const failures = answers.flatMap(({ status, reason }, index) =>
    status === "rejected" ? [{ what: Object.keys(asked)[index], why: reason.message }] : [],
  );
  const [scrape, ready, health, described] = answers.map((answer) => answer.value ?? null);

  const restarted = health !== null && health.uptime_secs < lastUptimeSecs;
  lastUptimeSecs = health?.uptime_secs ?? lastUptimeSecs;
  descriptor = failures.length > 0 || restarted ? null : described;

  if (described) showDescriptor(described);
  if (health) showHealth(health);
  if (scrape) showMetrics(scrape);
  showState(ready, failures);
}

function showDescriptor({ addr, port, server_name, relay_id, region }) {
  write(at("name"), server_name);
  write(at("region"), region ?? "none");
  write(at("address"), addr.includes(":") ? `[${addr}]:${port}` : `${addr}:${port}`);
  write(at("relay-id"), relay_id);
}

function showHealth({ uptime_secs, version }) {
  write(at("uptime"), duration(uptime_secs));
  write(at("version"), version);
}

function showMetrics(scrape) {
  const datagrams = byLabel(scrape, "zrc_relay_forwarded_datagrams_total", "from");
  const payload = byLabel(scrape, "zrc_relay_forwarded_bytes_total", "from");
  const drops = byLabel(scrape, "zrc_relay_dropped_datagrams_total", "reason");
  history.push(performance.now(), { datagrams, bytes: payload, drops });

  writeNumber("now-connections", value(scrape, "zrc_relay_connections"), count);
  writeNumber("now-allocations", value(scrape, "zrc_relay_allocations"), count);
  const latest = history.latest;
  writeNumber("now-datagrams", latest && datagrams && total(latest.datagrams), short);
  writeNumber("now-bytes", latest && payload && total(latest.bytes), perSecond);
  writeNumber("now-drops", latest && drops && total(latest.drops), short);

  show("datagrams", directions(datagrams));
  show("bytes", directions(payload));
  // A reason keeps its colour, whichever others occur.
  const reasons = [...(drops ?? [])].map(([key, dropped], style) => ({ key, label: words(key), style, dropped }));
  show("drops", reasons.filter(({ dropped }) => dropped > 0));

  const totals = TOTALS.map(({ label, name, bug }) => {
    const number = value(scrape, name);
    return { label, text: written(number, count), alarm: bug === true && number > 0 };
  });
  for (const [from, number] of datagrams ?? []) totals.push({ label: `Datagrams from ${from}`, text: count(number) });
  for (const [from, number] of payload ?? []) totals.push({ label: `Payload from ${from}`, text: bytes(number) });
  list(at("totals"), totals);

  fill(at("refused"), byCode(byLabel(scrape, "zrc_relay_refused_total", "code")));
  const allocations = byLabel(scrape, "zrc_relay_allocations_ended_total", "code");
  const connections = byLabel(scrape, "zrc_relay_connections_closed_total", "code");
  fill(at("ended"), byCode(allocations, connections));
}

function show(group, series) {
  const points = history.points.map(({ atMs, rates }) => ({ atMs, values: rates?.[group] ?? null }));
  plots[group].show(points, series);
}

function directions(sums) {
  return [...(sums ?? []).keys()].map((from, style) => ({ key: from, label: `from ${from}`, style }));
}

/** A row for each code that occurred, the most frequent first. */
function byCode(...columns) {
  const codes = new Set(columns.flatMap((column) => [...(column ?? []).keys()]));
  return [...codes]
    .map((code) => ({ code, numbers: columns.map((column) => column?.get(code) ?? null) }))
    .filter(({ numbers }) => numbers.some((number) => number > 0))
    .sort((a, b) => sum(b.numbers) - sum(a.numbers) || (a.code < b.code ? -1 : 1))
    .map(({ code, numbers }) => [code, ...numbers.map((number) => written(number, count))]);
}

function showState(ready, failures) {
  if (failures.length === 0) failingSince = null;
  else failingSince ??= new Date().toLocaleTimeString();
  const lost = POLLED.every((path) => failures.some(({ what }) => what === path));

  let [state, text] = ["unknown", "State unknown"];
  if (lost) [state, text] = ["lost", "Not answering"];
  else if (ready?.ready) [state, text] = ["ready", "Ready"];
  else if (ready) [state, text] = ["waiting", `Not ready: ${words(String(ready.reason))}`];
  at("state").dataset.state = state;
  write(at("state"), text);
  document.title = `${at("name").textContent}: ${text}`;

  const what = failures.map(({ what, why }) => `${what} (${why})`).join(", ");
  const notice = lost
    ? `No answer from the relay since ${failingSince}. Still asking every second; what is shown is from before.`
    : `Since ${failingSince} not everything can be read: ${what}. Still asking every second.`;
  at("notice").hidden = failures.length === 0;
  write(at("notice"), failures.length === 0 ? "" : notice);
  at("main").classList.toggle("stale", failures.some(({ what }) => what === "/metrics"));
}

const sum = (numbers) => numbers.reduce((all, number) => all + (number ?? 0), 0);
const written = (number, writer) => (number === null ? "–" : writer(number));

function writeNumber(id, number, writer) {
  write(at(id), written(number, writer));
}

let watching = false;

async function watch() {
  if (watching) return;
  watching = true;
  while (!document.hidden) {
    const next = performance.now() + PERIOD_MS;
    try {
      await update();
    } catch (error) {
      // An answer of another shape than this page knows. The next one may be better.
      console.error(error);
      at("notice").hidden = false;
      write(at("notice"), `This page cannot show what the relay answers: ${error.message}`);
    }
    await new Promise((resolve) => setTimeout(resolve, Math.max(next - performance.now(), 0)));
  }
  watching = false;
}

document.addEventListener("visibilitychange", watch);
watch();
