// What the modules of admin/ do without a page, under Node 18.16 or later: `tests/run.sh page`.

import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

// Node takes a .js file for CommonJS unless a package.json says otherwise.
const source = fileURLToPath(new URL("../../admin", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "zrc-relay-page-"));
cpSync(source, folder, { recursive: true });
writeFileSync(join(folder, "package.json"), '{"type": "module"}');
const load = (name) => import(pathToFileURL(join(folder, name)));
const { describe } = await load("activity.js");
const { Api, Failure, failure, isToken } = await load("api.js");
const { History, Rates, byLabel, parse, total, value } = await load("metrics.js");
const { certificateState } = await load("overview.js");
const { Backoff, Decoder, sleep, within } = await load("stream.js");
const { bytes, clock, count, duration, moment, short, ticks, trimmed, zone } = await load("units.js");
rmSync(folder, { recursive: true });

test("reads what the format allows", () => {
  const scrape = parse(
    [
      "# HELP a_total Some {text} 1",
      "# TYPE a_total counter",
      'a_total{code="X",kind="k"} 1',
      'a_total{ code = "Y" , kind = "} 7 \\"q\\" \\\\ \\n" , } 2.5e3 1700000000000',
      "",
      "b 3 ",
      "c:d{} +Inf",
      "e -Inf",
      "f NaN",
    ].join("\n"),
  );
  assert.deepEqual([...scrape.keys()], ["a_total", "b", "c:d", "e", "f"]);
  assert.deepEqual(scrape.get("a_total"), [
    { labels: new Map([["code", "X"], ["kind", "k"]]), value: 1 },
    { labels: new Map([["code", "Y"], ["kind", '} 7 "q" \\ \n']]), value: 2500 },
  ]);
  assert.deepEqual(scrape.get("b"), [{ labels: new Map(), value: 3 }]);
  assert.deepEqual(["c:d", "e", "f"].map((name) => scrape.get(name)[0].value), [Infinity, -Infinity, NaN]);
  assert.equal(parse("").size, 0);
});

test("refuses what is no sample, and says where", () => {
  for (const line of [
    "a",
    "a ",
    "a b",
    "a 1 2 3",
    "1a 1",
    "a{b} 1",
    'a{b="c} 1',
    'a{b="c"d="e"} 1',
    'a{b="c"',
    'a{="c"} 1',
    "a{,} 1",
    "<!doctype html>",
    '{"status": 500}',
  ]) {
    assert.throws(() => parse(`ok 1\n${line}\n`), { message: "line 2 is no sample" }, line);
  }
});

test("sums over labels", () => {
  const scrape = parse('a{x="1",y="1"} 1\na{x="1",y="2"} 2\na{x="2",y="1"} 4\n');
  assert.equal(value(scrape, "a"), 7);
  assert.equal(value(scrape, "b"), null);
  assert.deepEqual(byLabel(scrape, "a", "x"), new Map([["1", 3], ["2", 4]]));
  assert.equal(byLabel(scrape, "a", "z"), null);
  assert.equal(byLabel(scrape, "b", "x"), null);
  assert.equal(total(new Map([["1", 3], ["2", 4]])), 7);
  assert.equal(total(null), null);
});

test("makes rates, and holes where nothing is known", () => {
  const history = new History(10_000, 3000);
  const push = (atMs, a, b) => {
    history.push(atMs, { g: new Map(b === undefined ? [["a", a]] : [["a", a], ["b", b]]), unknown: null });
    return history.latest?.g;
  };
  assert.equal(history.latest, null);
  assert.equal(push(1000, 10), undefined, "one reading is no rate");
  assert.deepEqual(push(3000, 30), new Map([["a", 10]]));
  assert.deepEqual(push(3500, 30, 5), new Map([["a", 0], ["b", 10]]), "a new series begins at 0");
  assert.equal(push(6501, 99, 9), undefined, "too long ago");
  assert.equal(push(7000, 98, 9), undefined, "a counter fell");
  assert.deepEqual(push(8000, 99, 9), new Map([["a", 1], ["b", 0]]));
  assert.equal(push(8000, 99, 9), undefined, "no time passed");
  assert.equal(push(9000, NaN, 9), undefined);
  assert.equal(push(11_000, 99, 9), undefined);
  assert.equal(history.points[0].atMs, 1000);
  push(13_000, 99, 9);
  assert.equal(history.points[0].atMs, 3000, "what is older than the window goes");
  push(60_000, 99, 9);
  assert.equal(history.points.length, 1);
});

test("writes numbers short", () => {
  const written = [0, 1, 7.104, 0.25, 9.996, 99.96, 120, 999.4, 999.5, 1000, 20_500, 1.5e6, 2e21, Infinity];
  assert.deepEqual(
    written.map(short).slice(0, -1),
    ["0", "1", "7.10", "0.25", "10.0", "100", "120", "999", "1.00 k", "1.00 k", "20.5 k", "1.50 M", "2000000 P"],
  );
  assert.deepEqual([0, 512, 24_100_000].map(bytes), ["0 B", "512 B", "24.1 MB"]);
  assert.deepEqual([0, 999, 1000, 1234567].map(count), ["0", "999", "1\u202f000", "1\u202f234\u202f567"]);
  assert.deepEqual(
    ["0", "10", "100 k", "6.00 k", "2.50 MB", "0.25", "10.0", "10.0 kB"].map(trimmed),
    ["0", "10", "100 k", "6 k", "2.5 MB", "0.25", "10", "10 kB"],
  );
});

test("writes durations in two units", () => {
  assert.deepEqual(
    [0, 0.9, 59, 60, 725, 3600, 3605, 90_000, 86_400 * 400 + 59].map(duration),
    ["0 s", "0 s", "59 s", "1 min", "12 min 5 s", "1 h", "1 h", "1 d 1 h", "400 d"],
  );
});

test("marks an axis with few round numbers that hold the highest", () => {
  for (let highest = 0.001; highest < 1e16; highest *= 1.03) {
    const marks = ticks(highest);
    assert.ok(marks.length >= 3 && marks.length <= 5, `${highest}: ${marks}`);
    assert.ok(marks[0] === 0 && marks.at(-1) >= highest && marks.at(-1) <= Math.max(highest, 4) * 2, `${highest}: ${marks}`);
  }
  assert.deepEqual(ticks(0), [0, 1, 2, 3, 4]);
  assert.deepEqual(ticks(4000), [0, 1000, 2000, 3000, 4000]);
  assert.deepEqual(ticks(4001), [0, 2000, 4000, 6000]);
  for (const odd of [Infinity, NaN]) assert.ok(ticks(odd).length <= 5);
});

test("writes moments in local time", () => {
  const at = new Date(2026, 0, 2, 3, 4, 5).getTime();
  assert.equal(clock(at), "03:04:05");
  assert.equal(moment(at), "2026-01-02 03:04:05");
});

test("makes rates of counters that come and go", () => {
  const rates = new Rates();
  rates.push(1000, [["a", 10], ["b", 5]]);
  assert.equal(rates.of("a"), null);
  rates.push(3000, [["a", 30], ["c", 7]]);
  assert.deepEqual(["a", "b", "c"].map((key) => rates.of(key)), [10, null, null]);
  rates.push(4000, [["a", 29], ["b", 5], ["c", 7]]);
  assert.deepEqual(["a", "b", "c"].map((key) => rates.of(key)), [null, null, 0], "one fell, one is new again");
});

test("reads server-sent events however they are cut", () => {
  const text = ': hello\n\nevent: a\ndata: {"x":\ndata: 1}\nid: 7\n\r\ndata:2\r\n\r\n: still here\n\nevent: b\n\nevent: c\ndata: "ü"\n\n';
  const expected = [
    { name: "a", data: { x: 1 } },
    { name: "message", data: 2 },
    { name: "c", data: "ü" },
  ];
  for (let length = 1; length <= text.length; length += 1) {
    const decoder = new Decoder();
    const events = [];
    for (let at = 0; at < text.length; at += length) events.push(...decoder.push(text.slice(at, at + length)));
    assert.deepEqual(events, expected, `in pieces of ${length}`);
  }
});

test("does not take just anything for events", () => {
  assert.throws(() => new Decoder().push("data: {\n\n"), SyntaxError);
  const endless = new Decoder();
  assert.throws(() => {
    for (let piece = 0; piece < 100; piece += 1) endless.push("x".repeat(1000));
  }, /endless/);
  const lines = new Decoder();
  assert.throws(() => {
    for (let piece = 0; piece < 100; piece += 1) lines.push(`data: ${"x".repeat(1000)}\n`);
  }, /endless/);
});

test("waits longer each time, up to a limit, and from the beginning again", () => {
  for (const [random, share] of [[() => 0, 0.75], [() => 1, 1]]) {
    const backoff = new Backoff(1000, 15_000, random);
    const waits = Array.from({ length: 7 }, () => backoff.next() / share);
    assert.deepEqual(waits, [1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    backoff.reset();
    assert.equal(backoff.next() / share, 1000);
  }
});

test("sleeps no longer than it is let", async () => {
  const wake = new AbortController();
  const asleep = sleep(60_000, wake.signal);
  wake.abort();
  await asleep;
  await sleep(60_000, wake.signal);
  await sleep(1);
});

test("tells failures apart", () => {
  const kinds = [
    ["admin/stats", 401, "x", null, "token"],
    ["admin/drain", 403, "x", null, "role"],
    ["admin/stats", 429, "x", "7", "throttled"],
    ["admin/stats", 404, "there is no such page", null, "off"],
    ["admin/allocations", 404, null, null, "off"],
    ["admin/allocations/x", 404, "there is none", null, "missing"],
    ["admin/stats", 502, null, null, "gone"],
    ["admin/stats", 503, "32 listen already", null, "refused"],
    ["admin/stats", 500, null, null, "refused"],
    ["admin/stats", 421, "not this server", null, "refused"],
  ];
  for (const [path, status, detail, retry, kind] of kinds) {
    assert.equal(failure(path, status, detail, retry).kind, kind, `${path} ${status}`);
  }
  assert.equal(failure("admin/stats", 429, "x", "7").retrySecs, 7);
  for (const odd of [null, "soon", "-1"]) assert.equal(failure("admin/stats", 429, "x", odd).retrySecs, 60);
  assert.equal(failure("admin/blocks", 400, "it has no end", null).message, "It has no end.");
});

test("sends the token as a header alone, and only what can be one", async () => {
  const before = globalThis.fetch;
  const asked = [];
  globalThis.fetch = async (path, init) => {
    asked.push([path, init]);
    return new Response("{}", { status: 200 });
  };
  try {
    const api = new Api("secret");
    await api.get("admin/allocations", { id: "", cursor: null, device: "a&b" });
    await api.post("admin/blocks", { network: "::/0" });
    globalThis.fetch = async () => new Response("<html>", { status: 200 });
    await assert.rejects(api.get("admin/stats"), (error) => error instanceof Failure && error.kind === "off");
  } finally {
    globalThis.fetch = before;
  }
  assert.deepEqual(asked.map(([path]) => path), ["admin/allocations?device=a%26b", "admin/blocks"]);
  for (const [, { headers, redirect, credentials }] of asked) {
    assert.deepEqual([headers.authorization, redirect, credentials], ["Bearer secret", "error", "omit"]);
  }
  assert.equal(asked[1][1].body, '{"network":"::/0"}');
  assert.deepEqual(["zrc_admin_x", "", "two words", "ü", "a\nb"].map(isToken), [true, false, false, false, false]);
});

test("says in time that a certificate ends", () => {
  const day = 86_400;
  const state = (expires) => certificateState({ origin: "self_signed", expires_at_unix: expires }, 1000 * day);
  assert.deepEqual(state(null), { text: "self signed" });
  assert.equal(state(1020 * day).alarm, false);
  assert.match(state(1020 * day).text, /^self signed, until 1972-\d\d-\d\d \(20 d\)$/);
  assert.equal(state(1013 * day).alarm, true);
  assert.equal(state(999 * day).alarm, true);
  assert.match(state(999 * day).text, /expired/);
});

test("puts events into words", () => {
  const texts = [
    ["allocation_created", { id: "ab", by: "peer", device_id: "cd" }, "ab by its peer, for device cd"],
    ["allocation_ended", { id: "ab", code: "IDLE", lifetime_ms: 61_000, bytes_used: 5000 }, "ab: IDLE after 1 min 1 s, 5.00 kB"],
    ["admin", { event: "admin_action", reason: "token_refused", detail: "by x" }, "token refused: by x"],
    ["missed", { stream: "security", missed: 3 }, "3 events of security went by unread"],
    ["security", { event: "bad_token", at_unix_ms: 1, source: null, more: { a: 1 } }, 'bad token, more {"a":1}'],
  ];
  for (const [name, data, text] of texts) assert.equal(describe(name, data), text);
});

test("what takes too long is waited for no longer", async () => {
  assert.equal(await within(Promise.resolve(7), 1000), 7);
  await assert.rejects(within(Promise.reject(new Error("no")), 1000), /no/);
  await assert.rejects(within(new Promise(() => {}), 20), /nothing came for 0.02 s/);
});

test("a certificate of an authority's that is renewed in days is no reason for alarm", () => {
  const state = (origin, days) => certificateState({ origin, expires_at_unix: days * 86_400 + 1000 }, 1000).alarm;
  assert.deepEqual([state("acme", 2), state("acme", 1), state("files", 13), state("self-signed", 15)], [false, true, true, false]);
});

test("a number that two modules go by is written once", () => {
  const where = new Map();
  for (const name of readdirSync(source).filter((name) => name.endsWith(".js") && !name.startsWith("uPlot"))) {
    for (const [, constant] of readFileSync(join(source, name), "utf8").matchAll(/^(?:export )?const ([A-Z][A-Z_]+ = .*);$/gm)) {
      assert.equal(where.get(constant), undefined, `${constant} in ${name} and ${where.get(constant)}`);
      where.set(constant, name);
    }
  }
  assert.equal(where.get("MAX_GAP_MS = 6000"), "metrics.js");
});

test("local time says how far it is from the log's", () => {
  const zoned = (TZ) => {
    const before = process.env.TZ;
    process.env.TZ = TZ;
    try {
      return zone(Date.UTC(2026, 10, 20));
    } finally {
      if (before === undefined) delete process.env.TZ;
      else process.env.TZ = before;
    }
  };
  assert.deepEqual(["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kolkata"].map(zoned), ["UTC", "UTC+1", "UTC-3:30", "UTC+5:30"]);
});

test("what was asked before signing out is answered to nobody", async () => {
  const before = globalThis.fetch;
  try {
    const headers = { "content-type": "application/problem+json" };
    const answers = [
      new Response('{"allocations": []}'),
      new Response(null, { status: 204 }),
      new Response('{"detail": "secret"}', { status: 400, headers }),
      new Response("<html>", { status: 502 }),
      Promise.reject(new TypeError("Failed to fetch")),
    ];
    // While the answer is on its way, and while it is read.
    for (const endsBetween of [false, true]) {
      for (const it of answers) {
        let answer;
        globalThis.fetch = () => new Promise((resolve) => (answer = resolve));
        const api = new Api("token");
        const asked = api.get("admin/allocations");
        if (!endsBetween) api.end();
        answer(it instanceof Response ? it.clone() : it);
        if (endsBetween) api.end();
        await assert.rejects(asked, { kind: "over", message: "You have signed out." });
      }
    }
  } finally {
    globalThis.fetch = before;
  }
});

test("what is done is waited for longer than the relay itself waits", async () => {
  const before = [globalThis.fetch, AbortSignal.timeout];
  const patience = [];
  try {
    globalThis.fetch = async () => new Response("{}");
    AbortSignal.timeout = (ms) => patience.push(ms) && new AbortController().signal;
    const api = new Api("token");
    for (const method of ["get", "post", "put", "delete"]) await api[method]("admin/drain", {});
  } finally {
    [globalThis.fetch, AbortSignal.timeout] = before;
  }
  assert.deepEqual(patience.map((ms) => ms > 10_000), [false, true, true, true]);
});
