// The view of the whole relay: how much passes, what is dropped, and how the relay is.

import { at, fill, keep, list, make, write } from "./dom.js";
import { History, MAX_GAP_MS, WINDOW_MS, total } from "./metrics.js";
import { Plot } from "./plot.js";
import { bytes, count, duration, moment, short, words } from "./units.js";

/** A certificate that expires sooner should have been renewed. Authorities give some for six days, and renew them at two. */
const CERTIFICATE_SOON_SECS = { acme: 86_400 * 1.5 };
const OTHERS_SOON_SECS = 14 * 86_400;

const ROLES = ["device", "peer"];
/** The styles of reasons, in order of their first occurrence: a reason keeps its own. */
const styles = new Map();

let history = new History(WINDOW_MS, MAX_GAP_MS);
let plots = null;

/** Takes what `admin/stats` answered, and shows it. */
export function show(stats) {
  const { forwarded, dropped, allocations, connections } = stats;
  const each = (read) => new Map(ROLES.map((role) => [role, read(forwarded[role])]));
  const sent = {
    datagrams: each((it) => it.datagrams),
    bytes: each((it) => it.datagram_bytes + it.stream_bytes),
    drops: new Map(Object.entries(dropped)),
  };
  history.push(performance.now(), sent);
  plots ??= {
    datagrams: new Plot(at("plot-datagrams"), WINDOW_MS, short),
    bytes: new Plot(at("plot-bytes"), WINDOW_MS, bytes),
    drops: new Plot(at("plot-drops"), WINDOW_MS, short),
  };
  const latest = history.latest;
  tile("now-allocations", count(allocations.now), `of ${count(allocations.max)}, ${count(allocations.created)} created`);
  tile("now-connections", count(connections.now), `${count(connections.opened)} opened`);
  tile("now-datagrams", rate(latest?.datagrams, short), `${short(total(sent.datagrams))} in all`);
  tile("now-bytes", rate(latest?.bytes, (number) => `${bytes(number)}/s`), `${bytes(total(sent.bytes))} in all`);
  tile("now-drops", rate(latest?.drops, short), `${short(total(sent.drops))} in all`);

  const directions = ROLES.map((key, style) => ({ key, label: `from ${key}`, style }));
  draw("datagrams", directions);
  draw("bytes", directions);
  for (const reason of Object.keys(dropped)) if (!styles.has(reason)) styles.set(reason, styles.size);
  draw("drops", Object.keys(dropped).map((key) => ({ key, label: words(key), style: styles.get(key) })));

  showRelay(stats);
  fill(at("refused"), byCode(stats.refused));
  fill(at("ended"), byCode(allocations.ended, connections.closed));
}

/** Nothing is known any more: the next one may be another relay. */
export function forget() {
  history = new History(WINDOW_MS, MAX_GAP_MS);
  styles.clear();
  for (const plot of Object.values(plots ?? {})) plot.show([], []);
  for (const text of document.querySelectorAll("#overview .tiles dd")) write(text, text.className === "quiet" ? "\u00a0" : "–");
  for (const id of ["checks", "facts", "refused", "ended"]) at(id).replaceChildren();
}

function draw(group, series) {
  plots[group].show(history.points.map(({ atMs, rates }) => ({ atMs, values: rates?.[group] ?? null })), series);
}

function rate(rates, writer) {
  return rates ? writer(total(rates)) : "–";
}

function tile(id, text, below) {
  write(at(id), text);
  write(at(`${id}-of`), below);
}

function showRelay({ relay, checks, certificate, guard, uptime_secs, at_unix_ms }) {
  keep(
    at("checks"),
    checks,
    ({ name }) => name,
    () => make("li", { class: "badge" }),
    (item, { name, ok, detail }) => {
      item.className = `badge ${ok ? "good" : "bad"}`;
      write(item, `${words(name)}: ${detail}`);
    },
  );
  const address = relay.addr.includes(":") ? `[${relay.addr}]:${relay.port}` : `${relay.addr}:${relay.port}`;
  list(at("facts"), [
    { label: "Up for", text: duration(uptime_secs) },
    { label: "Certificate", ...certificateState(certificate, at_unix_ms / 1000) },
    { label: "Guard", text: words(guard.level), alarm: guard.level !== "normal" },
    { label: "Address", text: address },
    { label: "Server name", text: relay.server_name },
    { label: "Region", text: relay.region ?? "none" },
    { label: "Relay id", text: relay.relay_id },
    { label: "Key pin", text: relay.pin ?? "none" },
  ]);
}

/** What there is to say of a certificate, and whether somebody should do something. */
export function certificateState({ origin, expires_at_unix }, nowSecs) {
  const kind = words(origin);
  if (expires_at_unix === null) return { text: kind };
  const leftSecs = expires_at_unix - nowSecs;
  const day = moment(expires_at_unix * 1000).slice(0, 10);
  if (leftSecs <= 0) return { text: `${kind}, expired on ${day}`, alarm: true };
  return { text: `${kind}, until ${day} (${duration(leftSecs)})`, alarm: leftSecs < (CERTIFICATE_SOON_SECS[origin] ?? OTHERS_SOON_SECS) };
}

/** A row for each code that occurred, the most frequent first. */
function byCode(...columns) {
  const codes = [...new Set(columns.flatMap(Object.keys))];
  const sum = (code) => columns.reduce((all, column) => all + (column[code] ?? 0), 0);
  codes.sort((a, b) => sum(b) - sum(a) || (a < b ? -1 : 1));
  return codes.map((code) => [code, ...columns.map((column) => count(column[code] ?? 0))]);
}
