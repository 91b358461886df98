// A line plot of the last minutes in SVG, with a cursor for pointer and keyboard and the values in its legend.

import { ticks, trimmed } from "./units.js";

const LEFT = 54;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 22;
const MINUTE_MS = 60_000;
/** Series have colour and dash from a class of page.css: `series-0` and so on. */
const STYLES = 12;

export class Plot {
  #svg;
  #legend;
  #when;
  #empty;
  #write;
  #windowMs;
  #points = [];
  #series = [];
  #legendKeys = null;
  #values = new Map();
  /** How long before the newest point the cursor stands; null without a cursor. */
  #agoMs = null;

  /** `write` makes a text of a value. */
  constructor(section, windowMs, write) {
    this.#svg = section.querySelector("svg");
    this.#legend = section.querySelector(".legend");
    this.#when = section.querySelector("[data-when]");
    this.#empty = section.querySelector(".empty");
    this.#write = write;
    this.#windowMs = windowMs;
    const title = section.querySelector("h2").textContent;
    for (const [name, text] of [
      ["role", "slider"],
      ["aria-label", `${title}: time`],
      ["aria-valuemin", -windowMs / 1000],
      ["aria-valuemax", 0],
    ]) {
      this.#svg.setAttribute(name, text);
    }
    this.#svg.addEventListener("pointermove", (event) => this.#point(event));
    this.#svg.addEventListener("pointerdown", (event) => this.#point(event));
    this.#svg.addEventListener("pointerleave", () => this.#moveCursor(null));
    this.#svg.addEventListener("blur", () => this.#moveCursor(null));
    this.#svg.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(section);
  }

  /**
   * Shows `points`, `[{atMs, values}]` with a map from key to number or null for a hole, for `series`,
   * `[{key, label, style}]`; `style` is the number of its look.
   */
  show(points, series) {
    this.#points = points;
    this.#series = series;
    this.#draw();
  }

  #draw() {
    const any = this.#series.length > 0 && this.#points.length > 0;
    this.#svg.toggleAttribute("hidden", !any);
    this.#empty.hidden = any;
    this.#drawLegend();
    const { width, height } = this.#area();
    if (!any || width <= 0) return;
    let highest = 0;
    for (const { values } of this.#points) {
      for (const { key } of this.#series) highest = Math.max(highest, values?.get(key) ?? 0);
    }
    const marks = ticks(highest);
    const y = (value) => TOP + height - (value / marks.at(-1)) * height;
    const parts = [...this.#grid(marks, y, width, height)];
    for (const { key, style } of this.#series) {
      const [line, area] = this.#paths(key, y, width, height);
      parts.push(this.#make("path", { class: `area series-${style % STYLES}`, d: area }));
      parts.push(this.#make("path", { class: `line series-${style % STYLES}`, d: line }));
    }
    parts.push(...this.#cursor(y, width, height));
    this.#svg.replaceChildren(...parts);
  }

  #area() {
    const { width, height } = this.#svg.getBoundingClientRect();
    return { width: width - LEFT - RIGHT, height: height - TOP - BOTTOM };
  }

  #x(atMs, width) {
    return LEFT + width - ((this.#points.at(-1).atMs - atMs) / this.#windowMs) * width;
  }

  *#grid(marks, y, width, height) {
    for (const mark of marks) {
      yield this.#make("line", { class: "mark", x1: LEFT, x2: LEFT + width, y1: y(mark), y2: y(mark) });
      yield this.#make("text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, trimmed(this.#write(mark)));
    }
    const every = width < 380 ? 2 * MINUTE_MS : MINUTE_MS;
    const newest = this.#points.at(-1).atMs;
    for (let agoMs = 0; agoMs <= this.#windowMs; agoMs += every) {
      const x = this.#x(newest - agoMs, width);
      yield this.#make("line", { class: "mark", x1: x, x2: x, y1: TOP, y2: TOP + height });
      const anchor = agoMs === 0 ? "end" : agoMs === this.#windowMs ? "start" : "middle";
      const label = agoMs === 0 ? "now" : `−${agoMs / MINUTE_MS} min`;
      yield this.#make("text", { x, y: TOP + height + 16, "text-anchor": anchor }, label);
    }
  }

  /** A series as a line and as the area below it, broken where nothing is known. */
  #paths(key, y, width, height) {
    const runs = [[]];
    for (const { atMs, values } of this.#points) {
      const value = values?.get(key);
      if (value === undefined) runs.push([]);
      else runs.at(-1).push(`${this.#x(atMs, width).toFixed(1)} ${y(value).toFixed(1)}`);
    }
    const drawn = runs.filter((run) => run.length > 0);
    const bottom = TOP + height;
    return [
      // A round cap makes a dot of a line without length: a point between two holes is seen.
      drawn.map((run) => `M${run.join("L")}${run.length === 1 ? "h0" : ""}`).join(""),
      drawn.map((run) => `M${run[0].split(" ")[0]} ${bottom}L${run.join("L")}V${bottom}Z`).join(""),
    ];
  }

  *#cursor(y, width, height) {
    if (this.#agoMs === null) return;
    const point = this.#chosen();
    const x = this.#x(point.atMs, width);
    yield this.#make("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: TOP + height });
    for (const { key, style } of this.#series) {
      const value = point.values?.get(key);
      if (value !== undefined) {
        yield this.#make("circle", { class: `series-${style % STYLES}`, cx: x, cy: y(value), r: 3.5 });
      }
    }
  }

  /** The point that the cursor is nearest to; without a cursor the newest. */
  #chosen() {
    const newest = this.#points.at(-1);
    if (this.#agoMs === null || !newest) return newest;
    const wanted = newest.atMs - this.#agoMs;
    const off = (point) => Math.abs(point.atMs - wanted);
    return this.#points.reduce((best, point) => (off(point) <= off(best) ? point : best));
  }

  #drawLegend() {
    const keys = this.#series.map(({ key }) => key).join("\n");
    if (keys !== this.#legendKeys) {
      this.#legendKeys = keys;
      this.#values.clear();
      this.#legend.replaceChildren(...this.#series.map((series) => this.#legendEntry(series)));
    }
    const point = this.#chosen();
    const texts = [];
    for (const { key, label } of this.#series) {
      const value = point?.values?.get(key);
      const text = value === undefined ? "–" : this.#write(value);
      this.#values.get(key).textContent = text;
      texts.push(`${label} ${text}`);
    }
    const newest = this.#points.at(-1);
    const agoSecs = point ? Math.round((newest.atMs - point.atMs) / 1000) : 0;
    this.#when.textContent = agoSecs === 0 ? "now" : `${agoSecs} s ago`;
    this.#svg.setAttribute("aria-valuenow", -agoSecs);
    // A screen reader reads this out when it changes: only while someone moves the cursor, not every second.
    const said = `${this.#when.textContent}: ${texts.join(", ")}`;
    if (this.#agoMs !== null || !this.#svg.hasAttribute("aria-valuetext")) {
      this.#svg.setAttribute("aria-valuetext", said);
    }
  }

  #legendEntry({ key, label, style }) {
    const entry = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = `swatch series-${style % STYLES}`;
    const value = document.createElement("b");
    entry.append(swatch, ` ${label} `, value);
    this.#values.set(key, value);
    return entry;
  }

  #point(event) {
    const { width } = this.#area();
    if (width <= 0) return;
    const x = event.clientX - this.#svg.getBoundingClientRect().left - LEFT;
    this.#moveCursor((1 - x / width) * this.#windowMs);
  }

  #key(event) {
    const now = this.#agoMs ?? 0;
    const moved = {
      ArrowLeft: now + 1000,
      ArrowDown: now + 1000,
      ArrowRight: now - 1000,
      ArrowUp: now - 1000,
      PageDown: now + 10_000,
      PageUp: now - 10_000,
      Home: this.#windowMs,
      End: 0,
      Escape: null,
    }[event.key];
    if (moved === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#moveCursor(moved);
  }

  #moveCursor(agoMs) {
    const oldestMs = this.#points.length > 0 ? this.#points.at(-1).atMs - this.#points[0].atMs : 0;
    this.#agoMs = agoMs === null ? null : Math.min(Math.max(agoMs, 0), oldestMs);
    this.#draw();
  }

  #make(name, attributes, text) {
    const element = document.createElementNS(this.#svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
}
