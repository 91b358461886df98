// The modules of admin/ that touch no page, under Node 18 or later: `tests/run.sh page`.

import assert from "node:assert/strict";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

// Node takes a .js file for CommonJS unless a package.json says otherwise; .mjs is a module anywhere.
const folder = mkdtempSync(join(tmpdir(), "zrc-relay-page-"));
const load = async (name) => {
  const copy = join(folder, name.replace(/\.js$/, ".mjs"));
  copyFileSync(new URL(`../../admin/${name}`, import.meta.url), copy);
  return import(pathToFileURL(copy));
};
const { History, byLabel, parse, total, value } = await load("metrics.js");
const { bytes, count, duration, short, ticks, trimmed } = await load("units.js");
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
