// The view of what is live: a table that is searched, sorted and paged by the relay, the details of one, and its end.

import { at, keep, list, make, mark, write } from "./dom.js";
import { ask, tell } from "./dialog.js";
import { History, MAX_GAP_MS, Rates, WINDOW_MS } from "./metrics.js";
import { Plot } from "./plot.js";
import { bytes, count, duration, moment, short } from "./units.js";

const STATES = { paired: "good", waiting: "", interrupted: "warn", deserted: "warn" };
/** How the first press of a column's head sorts. */
const FIRST_ORDER = { id: "asc", bytes: "desc", activity: "desc", created: "desc", expires: "asc" };

/** What is wanted of the list. */
const wanted = { sort: "id", order: "asc", cursor: null };
const rates = new Rates();

let session = null;
let page = null;
/** The one whose details are shown: its id, and what was heard of it. */
let chosen = null;
let plot = null;

/** Listens to what people do; `it` has the `api`, and `refresh()` asks anew. */
export function begin(it) {
  session = it;
  const find = at("find");
  find.addEventListener("submit", (event) => {
    event.preventDefault();
    anew();
  });
  find.addEventListener("input", anew);
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => sortBy(button.dataset.sort));
  }
  at("page-first").addEventListener("click", anew);
  at("page-next").addEventListener("click", () => {
    wanted.cursor = page?.next ?? null;
    session.refresh();
  });
  at("detail-close").addEventListener("click", close);
  at("detail").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.target.closest(".chart")) close();
  });
  at("detail-kill").addEventListener("click", () => chosen && askKill(chosen.id));
}

/** Asks for the page and the details, and shows them. */
export async function update() {
  const text = at("find-text");
  const isHex = text.validity.valid;
  write(at("find-said"), isHex ? "" : "Ids are hex digits: 0 to 9 and a to f.");
  if (isHex) {
    const query = {
      ...wanted,
      [at("find-by").value]: text.value.trim().slice(0, at("find-by").value === "id" ? 32 : 64),
      state: at("find-state").value,
      limit: at("find-limit").value,
    };
    const asked = JSON.stringify(wanted);
    const answer = await session.api.get("admin/allocations", query);
    // What was asked for meanwhile comes with the next answer.
    if (asked === JSON.stringify(wanted)) showPage(answer);
  }
  await updateDetail();
}

/** An event may be about what is shown. */
export function heard(name, data) {
  if (name !== "allocation_ended" || data.id !== chosen?.id) return;
  chosen.end = `It has ended: ${data.code}, after ${duration(data.lifetime_ms / 1000)} and ${bytes(data.bytes_used)}.`;
}

/** Nothing is known any more. */
export function forget() {
  page = null;
  wanted.cursor = null;
  close();
  at("find").reset();
  at("rows").replaceChildren();
  write(at("shown"), "");
  write(at("rows-empty"), "Asking …");
  at("rows-empty").hidden = false;
}

/** Begins the list from its start. */
function anew() {
  wanted.cursor = null;
  session.refresh();
}

function sortBy(sort) {
  const flipped = wanted.order === "asc" ? "desc" : "asc";
  wanted.order = wanted.sort === sort ? flipped : FIRST_ORDER[sort];
  wanted.sort = sort;
  anew();
}

function showPage(answer) {
  page = answer;
  const { allocations, total, next } = answer;
  const nowMs = performance.now();
  rates.push(nowMs, allocations.map(({ id, bytes_used }) => [id, bytes_used]));
  keep(at("rows"), allocations, ({ id }) => id, createRow, updateRow);
  for (const button of document.querySelectorAll("[data-sort]")) {
    const order = wanted.order === "asc" ? "ascending" : "descending";
    mark(button.parentElement, "aria-sort", button.dataset.sort === wanted.sort ? order : null);
  }
  const filtered = at("find-text").value !== "" || at("find-state").value !== "";
  const empty = filtered ? "No live allocation is like that." : "There is no allocation at the moment.";
  const rest = wanted.cursor === null ? empty : "There are no more.";
  at("rows-empty").hidden = allocations.length > 0;
  write(at("rows-empty"), rest);
  const what = filtered ? `of ${count(total)} that match` : `of ${count(total)}`;
  write(at("shown"), allocations.length > 0 ? `${count(allocations.length)} ${what}` : "");
  at("page-first").disabled = wanted.cursor === null;
  at("page-next").disabled = next === null;
}

function createRow({ id }) {
  const open = make("button", { type: "button", class: "plain mono", "aria-label": `Details of ${id.slice(0, 12)}` }, id.slice(0, 12));
  open.addEventListener("click", () => choose(id));
  const kill = make("button", { type: "button", class: "small danger act", "aria-label": `Kill … ${id.slice(0, 12)}` }, "Kill …");
  kill.addEventListener("click", () => askKill(id));
  const row = make("tr", {}, make("th", { scope: "row", title: id }, open), make("td", { class: "mono spare" }));
  row.append(make("td", {}, make("span", { class: "badge" })), make("td", { class: "least" }));
  for (const name of ["number", "number", "number spare", "number", "number"]) row.append(make("td", { class: name }));
  row.append(make("td", {}, kill));
  return row;
}

function updateRow(row, it) {
  const [, device, state, tier, rate, used, active, created, expires, end] = row.cells;
  const nowMs = session.nowMs();
  row.classList.toggle("chosen", it.id === chosen?.id);
  write(device, it.device_id.slice(0, 12));
  device.title = it.device_id;
  showState(state.firstElementChild, it.state);
  write(tier, it.tier ?? "default");
  const perSecond = rates.of(it.id);
  write(rate, perSecond === null ? "–" : `${bytes(perSecond)}/s`);
  showUsed(used, it);
  write(active, it.last_activity_unix_ms === null ? "never" : ago(nowMs - it.last_activity_unix_ms));
  write(created, ago(it.age_secs * 1000));
  write(expires, until(it.expires_at_unix, nowMs));
  end.firstElementChild.disabled = session.readOnly();
}

function showState(badge, state) {
  badge.className = `badge ${STATES[state] ?? ""}`;
  write(badge, state);
}

/** Bytes, and how much of the quota they are. */
function showUsed(cell, { bytes_used, limits }) {
  const quota = limits.quota_bytes;
  const parts = [cell.querySelector(".text"), cell.querySelector(".meter")];
  if (!parts[0]) {
    parts[0] = cell.appendChild(make("span", { class: "text" }));
    parts[1] = cell.appendChild(make("span", { class: "meter spare" }, make("span")));
  }
  write(parts[0], bytes(bytes_used));
  parts[1].classList.toggle("none", quota === null);
  if (quota === null) return;
  const share = Math.min(bytes_used / Math.max(quota, 1), 1);
  cell.title = `${Math.floor(share * 100)} % of ${bytes(quota)}`;
  parts[1].firstElementChild.style.width = `${share * 100}%`;
  parts[1].classList.toggle("warn", share >= 0.9);
}

function choose(id) {
  chosen = { id, end: null, history: new History(WINDOW_MS, MAX_GAP_MS) };
  at("beside").classList.add("open");
  at("detail").hidden = false;
  write(at("detail-id"), id.slice(0, 12));
  at("detail-said").hidden = true;
  at("detail-facts").replaceChildren();
  at("legs").replaceChildren();
  at("detail").focus();
  session.refresh();
}

function close() {
  const id = chosen?.id;
  chosen = null;
  at("beside").classList.remove("open");
  at("detail").hidden = true;
  at("detail-facts").replaceChildren();
  at("legs").replaceChildren();
  plot?.show([], []);
  write(at("detail-id"), "");
  // Back to where it was opened.
  for (const row of at("rows").children) {
    row.classList.remove("chosen");
    if (row.dataset.key === id) row.querySelector("button").focus();
  }
}

async function updateDetail() {
  if (!chosen) return;
  const { id } = chosen;
  try {
    const it = await session.api.get(`admin/allocations/${id}`);
    if (chosen?.id === id) showDetail(it);
  } catch (error) {
    if (error.kind !== "missing") throw error;
    if (chosen?.id === id) showEnd();
  }
}

function showDetail(it) {
  plot ??= new Plot(at("plot-detail"), WINDOW_MS, bytes);
  const { sent, limits } = it;
  chosen.history.push(performance.now(), { bytes: new Map([["device", sent.device.bytes], ["peer", sent.peer.bytes]]) });
  const points = chosen.history.points.map(({ atMs, rates }) => ({ atMs, values: rates?.bytes ?? null }));
  plot.show(points, ["device", "peer"].map((key, style) => ({ key, label: `from ${key}`, style })));
  at("detail-kill").hidden = false;
  const passed = ({ bytes: sum, packets }) => `${bytes(sum)}, ${count(packets)} datagrams`;
  const facts = [
    { label: "Id", text: it.id, id: true },
    { label: "Allocation id", text: it.allocation_id, id: true },
    { label: "Device", text: it.device_id, id: true },
    { label: "Peer", text: it.peer_id, id: true },
    { label: "State", text: it.state },
    { label: "Tier", text: it.tier ?? "default" },
    { label: "From device", text: passed(sent.device) },
    { label: "From peer", text: passed(sent.peer) },
    { label: "Used", text: limits.quota_bytes === null ? bytes(it.bytes_used) : `${bytes(it.bytes_used)} of ${bytes(limits.quota_bytes)}` },
    { label: "Rate limit", text: limits.bytes_per_sec === null ? "none" : `${bytes(limits.bytes_per_sec)}/s` },
    { label: "Packet limit", text: limits.packets_per_sec === null ? "none" : `${short(limits.packets_per_sec)}/s` },
    { label: "Created", text: moment(it.created_unix_ms) },
    { label: "Expires", text: moment(it.expires_at_unix * 1000) },
  ];
  list(at("detail-facts"), facts);
  facts.forEach(({ id }, index) => at("detail-facts").children[index].classList.toggle("id", id === true));
  at("legs-empty").hidden = it.legs.length > 0;
  keep(
    at("legs"),
    it.legs,
    ({ connection }) => String(connection),
    () => make("li", {}, make("span"), make("span", { class: "quiet" })),
    (item, leg) => {
      write(item.children[0], `${leg.role} from ${leg.remote}`);
      const raw = leg.raw_channel ? ", raw channel" : "";
      const rtt = `round trip ${(leg.rtt_us / 1000).toFixed(leg.rtt_us < 10_000 ? 2 : 0)} ms`;
      write(item.children[1], `connection ${leg.connection}, ${rtt}, MTU ${leg.path_mtu_bytes}${raw}`);
    },
  );
}

function showEnd() {
  const said = at("detail-said");
  said.hidden = false;
  write(said, chosen.end ?? "It has ended.");
  // What is hidden loses the focus.
  if (document.activeElement === at("detail-kill")) at("detail").focus();
  at("detail-kill").hidden = true;
  at("legs").replaceChildren();
  at("legs-empty").hidden = false;
}

function askKill(id) {
  write(at("kill-id"), id);
  at("kill-reason").value = "";
  ask(at("ask-kill"), async () => {
    try {
      await session.api.delete(`admin/allocations/${id}`, { reason: at("kill-reason").value.trim() });
      tell(`Allocation ${id.slice(0, 12)} has been killed.`);
    } catch (error) {
      // Somebody was faster: it is as it should be.
      if (error.kind !== "missing") throw error;
      tell(`Allocation ${id.slice(0, 12)} had already ended.`);
    }
    session.refresh();
  });
}

function ago(ms) {
  return ms < 2000 ? "now" : `${duration(ms / 1000)} ago`;
}

function until(unixSecs, nowMs) {
  const secs = unixSecs - nowMs / 1000;
  return secs <= 0 ? "now" : `in ${duration(secs)}`;
}
