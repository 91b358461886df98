// A line plot of the last minutes, drawn by uPlot, with a cursor for pointer and keyboard and the values in its legend.

import uPlot from "./uPlot.esm.js";

import { make, mark, write } from "./dom.js";
import { ticks, trimmed } from "./units.js";

const LEFT = 58;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 26;
const MINUTE_MS = 60_000;
/** Narrower than this, every second minute has a mark. */
const NARROW = 380;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
/** Series have a colour of page.css, `--hue-0` and so on; from the seventh on they are dashed. */
const HUES = 6;
const STYLES = 2 * HUES;

export class Plot {
  #chart;
  #legend;
  #when;
  #empty;
  #write;
  #windowMs;
  #points = [];
  #series = [];
  #keys = null;
  #values = new Map();
  #marks = ticks(0);
  #uplot = null;
  /** How long before the newest point the cursor stands; null without a cursor. */
  #agoMs = null;

  /** `write` makes a text of a value. */
  constructor(section, windowMs, write) {
    this.#chart = section.querySelector(".chart");
    this.#legend = section.querySelector(".legend");
    this.#when = section.querySelector("[data-when]");
    this.#empty = section.querySelector(".empty");
    this.#write = write;
    this.#windowMs = windowMs;
    const title = section.querySelector("h2, h3, h4").textContent;
    for (const [name, text] of [
      ["role", "slider"],
      ["aria-label", `${title}: time`],
      ["aria-valuemin", String(-windowMs / 1000)],
      ["aria-valuemax", "0"],
    ]) {
      this.#chart.setAttribute(name, text);
    }
    this.#chart.addEventListener("pointermove", (event) => this.#point(event));
    this.#chart.addEventListener("pointerdown", (event) => this.#point(event));
    this.#chart.addEventListener("pointerleave", () => this.#moveCursor(null));
    this.#chart.addEventListener("blur", () => this.#moveCursor(null));
    this.#chart.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#resize()).observe(this.#chart);
    // Colours are read when the plot is made.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#remake());
  }

  /**
   * Shows `points`, `[{atMs, values}]` with a map from key to number or null for a hole, for `series`,
   * `[{key, label, style}]`; `style` is the number of its look.
   */
  show(points, series) {
    this.#points = points;
    this.#series = series;
    const keys = JSON.stringify(series.map(({ key }) => key));
    if (keys !== this.#keys) {
      this.#keys = keys;
      this.#values.clear();
      mark(this.#chart, "aria-valuetext", null);
      this.#legend.replaceChildren(...series.map((it) => this.#legendEntry(it)));
      this.#remake();
    }
    this.#draw();
  }

  #draw() {
    const any = this.#series.length > 0 && this.#points.length > 0;
    this.#chart.hidden = !any;
    this.#empty.hidden = any;
    this.#drawLegend();
    if (!any) return;
    if (!this.#uplot) this.#make();
    if (!this.#uplot) return;
    const newest = this.#points.at(-1).atMs;
    const columns = this.#series.map(({ key }) => this.#points.map(({ values }) => values?.get(key) ?? null));
    let highest = 0;
    for (const column of columns) highest = column.reduce((most, value) => Math.max(most, value ?? 0), highest);
    this.#marks = ticks(highest);
    this.#uplot.setData([this.#points.map(({ atMs }) => (atMs - newest) / 1000), ...columns]);
    this.#drawCursor();
  }

  #remake() {
    this.#uplot?.destroy();
    this.#uplot = null;
    this.#draw();
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.#chart;
    if (width <= 0 || height <= 0) return;
    if (this.#uplot) this.#uplot.setSize({ width, height });
    else this.#draw();
    if (this.#uplot) this.#drawCursor();
  }

  /** Nothing as long as the plot is not to be seen. */
  #make() {
    const { clientWidth: width, clientHeight: height } = this.#chart;
    if (width <= 0 || height <= 0) return;
    const style = getComputedStyle(this.#chart);
    const colour = (name) => style.getPropertyValue(name).trim();
    const grid = { stroke: colour("--rule"), width: 1 };
    const axis = { stroke: colour("--quiet"), font: FONT, grid, ticks: { show: false }, gap: 6 };
    const windowSecs = this.#windowMs / 1000;
    const lines = this.#series.map(({ label, style: number }) => {
      const hue = colour(`--hue-${number % HUES}`);
      return {
        label,
        stroke: hue,
        fill: `${hue}18`,
        width: 1.75,
        dash: number % STYLES < HUES ? undefined : [5, 4],
        // A point between two holes would not be seen otherwise.
        points: { show: false, size: 4, filter: (plot, line) => alone(plot.data[line]) },
      };
    });
    const options = {
      width,
      height,
      padding: [TOP, RIGHT, 0, 0],
      legend: { show: false },
      select: { show: false },
      // The pointer is followed here, as the keyboard is.
      cursor: { y: false, drag: { x: false, y: false }, bind: UNBOUND, points: { size: 7, width: 0 } },
      scales: { x: { time: false, range: () => [-windowSecs, 0] }, y: { range: () => [0, this.#marks.at(-1)] } },
      axes: [
        { ...axis, size: BOTTOM, splits: (plot) => minutes(windowSecs, plot.width), values: (_, at) => at.map(ago) },
        {
          ...axis,
          size: LEFT,
          splits: () => this.#marks,
          values: (_, marks) => marks.map((value) => trimmed(this.#write(value))),
        },
      ],
      series: [{}, ...lines],
    };
    this.#uplot = new uPlot(options, [[], ...lines.map(() => [])], this.#chart);
  }

  #drawCursor() {
    const away = { left: -10, top: -10 };
    if (this.#agoMs === null) {
      this.#uplot.setCursor(away, false);
      return;
    }
    const left = this.#uplot.valToPos((this.#chosen().atMs - this.#points.at(-1).atMs) / 1000, "x");
    this.#uplot.setCursor({ left, top: 0 }, false);
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
    const point = this.#chosen();
    const texts = [];
    for (const { key, label } of this.#series) {
      const value = point?.values?.get(key);
      const text = value === undefined ? "–" : this.#write(value);
      write(this.#values.get(key), text);
      texts.push(`${label} ${text}`);
    }
    const newest = this.#points.at(-1);
    const agoSecs = point ? Math.round((newest.atMs - point.atMs) / 1000) : 0;
    write(this.#when, agoSecs === 0 ? "now" : `${agoSecs} s ago`);
    mark(this.#chart, "aria-valuenow", String(-agoSecs));
    // A screen reader reads this out when it changes: only while someone moves the cursor, not every second.
    if (this.#agoMs !== null || !this.#chart.hasAttribute("aria-valuetext")) {
      mark(this.#chart, "aria-valuetext", `${this.#when.textContent}: ${texts.join(", ")}`);
    }
  }

  #legendEntry({ key, label, style }) {
    const value = make("b");
    this.#values.set(key, value);
    return make("li", {}, make("span", { class: `swatch series-${style % STYLES}` }), ` ${label} `, value);
  }

  #point(event) {
    if (!this.#uplot) return;
    const { left, width } = this.#uplot.over.getBoundingClientRect();
    if (width > 0) this.#moveCursor((1 - (event.clientX - left) / width) * this.#windowMs);
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
    this.#drawLegend();
    if (this.#uplot && this.#points.length > 0) this.#drawCursor();
  }
}

/** uPlot listens to nothing. */
const UNBOUND = Object.fromEntries(
  ["mousedown", "mouseup", "click", "dblclick", "mousemove", "mouseleave", "mouseenter"].map((name) => [name, () => null]),
);

/** Where the marks of an axis of time stand, in seconds before now. */
function minutes(windowSecs, width) {
  const every = ((width < NARROW ? 2 : 1) * MINUTE_MS) / 1000;
  const marks = [];
  for (let at = 0; at >= -windowSecs; at -= every) marks.unshift(at);
  return marks;
}

const ago = (secs) => (secs === 0 ? "now" : `−${-secs / 60} min`);

/** Which values have nothing on either side. */
function alone(values) {
  return values.flatMap((value, index) =>
    value !== null && (values[index - 1] ?? null) === null && (values[index + 1] ?? null) === null ? [index] : [],
  );
}
