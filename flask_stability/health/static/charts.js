// The charts: uPlot, fed from the store, with a key that tells the values, readable with the arrow keys.

import {bytes, count, decimal, ms, second, t, time} from "./words.js";

const {uPlot} = window;
const DASHES = [[], [6, 3], [2, 3]];
const COLOURS = 8;

/** The value of a custom property of the style sheet. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const plain = (name, zero = true) => (store, round) => {
  const value = store.value(round, name);
  return zero || value > 0 ? value : null;
};
const rate = (name) => (store, round, before) => before && round.time > before.time
  ? Math.max(0, store.value(round, name) - store.value(before, name)) / (round.time - before.time) : null;
const timed = (name) => (store, round, before) =>
  before && store.value(round, "requests") > store.value(before, "requests") ? store.value(round, name) || null : null;

/** One line for each slot that a worker was in, the largest if not all have one, and the limit. */
function memoryLines(store, rounds) {
  const slots = new Set();
  let hidden = false;
  for (const round of rounds) {
    for (const [slot] of round.workers) slots.add(slot);
    hidden ||= store.value(round, "workers") > round.workers.length && round.workers.length >= 16;
  }
  const lines = [...slots].sort((a, b) => a - b).map((slot, index) => ({
    label: t("of_worker", {slot}), colour: `--line-${index % COLOURS}`, dash: Math.floor(index / COLOURS),
    value: (_, round) => round.workers.find((one) => one[0] === slot)?.[2] ?? null}));
  if (hidden) lines.push({label: t("largest"), colour: "--text", dash: 2, value: plain("rss_max", false)});
  if (rounds.some((round) => store.value(round, "memory_limit") > 0))
    lines.push({label: t("limit"), colour: "--fail", dash: 1, value: plain("memory_limit", false)});
  return lines;
}

const fixed = (...lines) => () => lines.map(([label, shade, value, fill]) => ({label, colour: shade, value, fill, dash: 0}));

const KINDS = {
  response: {write: ms, decades: true, lines: fixed(["p50", "--line-0", timed("p50_ms")], ["p95", "--line-2", timed("p95_ms")],
    ["p99", "--line-3", timed("p99_ms")])},
  requests: {write: decimal, lines: fixed(["2xx", "--line-5", rate("answers_2xx"), true],
    ["3xx", "--line-0", rate("answers_3xx")], ["4xx", "--line-2", rate("answers_4xx")],
    ["5xx", "--line-3", rate("errors")])},
  memory: {write: bytes, lines: memoryLines, marks: true, binary: true},
  pool: {write: count, database: true, lines: fixed([t("in_use"), "--line-0", plain("db_in_use"), true],
    [t("idle"), "--line-5", plain("db_idle")], [t("waiting"), "--line-3", plain("db_waiting")],
    [t("held"), "--line-2", plain("db_held")])},
  latency: {write: ms, decades: true, database: true, lines: fixed([t("round_trip"), "--line-4", plain("db_latency_ms", false), true])},
};

// a second's outage is not to flatten the milliseconds of all the rest
const DECADES = {distr: 3, log: 10, range: (_, low, high) => uPlot.rangeLog(low || 1, Math.max(high || 0, 10), 10, true)};
const isDecade = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;
const onlyDecades = (_, splits) => splits.map((value) => isDecade(value) ? value : null);

/** Times at the axis: with seconds where the steps are shorter than a minute. */
const moments = (plot, splits, axis, space, step) => splits.map((at) =>
  step < 60 ? second(at) : time(Math.round(at), at));

class Chart {
  constructor(name) {
    Object.assign(this, {name, ...KINDS[name], plot: null, drawn: "", moments: []});
    this.box = document.getElementById(`${name}-plot`);
    this.key = document.getElementById(`${name}-key`);
    this.empty = document.getElementById(`${name}-empty`);
    this.point = document.getElementById(`${name}-point`);
    this.box.setAttribute("aria-label", t("chart_keys", {name: t(name)}));
    this.box.addEventListener("keydown", (event) => this.read(event));
    this.box.addEventListener("blur", () => this.plot?.setCursor({left: -10, top: -10}));
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
  }

  size() { return {width: Math.max(200, this.box.clientWidth), height: this.box.clientHeight || 160}; }

  /** Draw the store's last so many seconds. */
  draw(store, seconds) {
    const rounds = store.window(seconds);
    const missing = this.database && store.health && !store.health.detailed.database.configured;
    this.empty.hidden = !missing && rounds.length > 0;
    this.empty.textContent = t(missing ? "no_database" : "no_data_yet");
    this.box.hidden = this.key.hidden = !this.empty.hidden;
    if (this.box.hidden) return;
    const lines = this.lines(store, rounds);
    const {data, moments} = columns(store, rounds, lines);
    this.moments = this.marks ? moments : [];
    // a service younger than that fills the chart all the same
    this.range = {min: Math.max(store.now() - seconds, Math.min(rounds[0].time, store.now() - 120)), max: store.now()};
    const drawn = JSON.stringify(lines.map(({label, colour, dash}) => [label, colour, dash]));
    if (this.plot && drawn === this.drawn) {
      this.plot.setData(data);
    } else {
      this.discard();
      this.drawn = drawn;
      this.build(lines, data);
    }
    this.tell();
  }

  /** Forget the drawing: the next one takes the colours anew. */
  discard() {
    this.plot?.destroy();
    this.plot = null;
    this.drawn = "";
  }

  build(lines, data) {
    const text = colour("--dim"), grid = {stroke: colour("--grid"), width: 1}, font = "11px system-ui, sans-serif";
    const axis = {stroke: text, grid, ticks: {show: false}, font};
    this.written = lines;
    this.key.replaceChildren(...lines.map((line) => keyItem(line)));
    if (this.marks) this.key.append(keyItem({label: t("replaced"), colour: "--mark", mark: true}));
    this.plot = new uPlot({
      ...this.size(), padding: [8, 26, 0, 0], legend: {show: false},
      cursor: {drag: {x: false, y: false}, y: false, sync: {key: "dashboard"}, points: {size: 6}},
      scales: {x: {time: true, range: () => [this.range.min, this.range.max]}, y: this.decades ? DECADES : {
        range: (_, low, high) => [0, Math.max(high ?? 0, this.write === count ? 2 : 0.1) * 1.08]}},
      axes: [{...axis, size: 24, gap: 4, space: 68, values: moments},
        {...axis, size: 62, gap: 4, space: this.decades ? 16 : 32, incrs: this.binary ? binary() : undefined,
          ...(this.decades ? {filter: onlyDecades, grid: {...grid, filter: onlyDecades}} : {}),
          values: (_, splits) => splits.map((value) => value === null ? "" : this.write(value))}],
      series: [{}, ...lines.map((line) => ({
        stroke: colour(line.colour), width: 1.5, dash: DASHES[line.dash], points: {show: data[0].length < 2},
        fill: line.fill ? `color-mix(in srgb, ${colour(line.colour)} 14%, transparent)` : undefined}))],
      hooks: {setCursor: [() => this.tell()], drawClear: [(plot) => this.mark(plot)]},
    }, data, this.box);
  }

  /** A line where workers ended. */
  mark(plot) {
    const {ctx, bbox} = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--mark");
    ctx.lineWidth = devicePixelRatio;
    for (const moment of this.moments) {
      const x = plot.valToPos(moment, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.beginPath();
      ctx.arc(x, bbox.top + 3 * devicePixelRatio, 3 * devicePixelRatio, 0, 2 * Math.PI);
      ctx.fill();
    }
    ctx.restore();
  }

  /** Write the values at the cursor, or else the latest, into the key. */
  tell() {
    if (!this.plot) return;
    const {data, cursor} = this.plot, at = cursor.idx ?? data[0].length - 1;
    const items = this.key.children;
    this.written.forEach((line, index) => write(items[index].lastChild, this.write(data[index + 1][at] ?? null)));
  }

  /** The arrow keys move the cursor from point to point, and say what is there. */
  read(event) {
    const data = this.plot?.data, last = data ? data[0].length - 1 : -1;
    if (last < 0) return;
    const at = this.plot.cursor.idx ?? last + 1;
    const next = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, next));
    this.plot.setCursor({left: this.plot.valToPos(data[0][index], "x"), top: 10});
    const values = this.written.map((line, number) => `${line.label} ${this.write(data[number + 1][index] ?? null)}`);
    this.point.textContent = `${second(data[0][index])}: ${values.join(", ")}`;
  }
}

/** Times and values for uPlot, with a gap where rounds are missing, and the moments at which workers had ended. */
function columns(store, rounds, lines) {
  const steps = rounds.slice(1).map((round, index) => round.time - rounds[index].time).sort((a, b) => a - b);
  const longest = 4 * (steps[steps.length >> 1] ?? Infinity);
  const data = [[], ...lines.map(() => [])], moments = [];
  rounds.forEach((round, index) => {
    const before = rounds[index - 1];
    if (before && round.time - before.time > longest) {
      data[0].push((round.time + before.time) / 2);
      lines.forEach((_, number) => data[number + 1].push(null));
    }
    data[0].push(round.time);
    lines.forEach((line, number) => data[number + 1].push(line.value(store, round, before)));
    if (before && store.value(round, "restarts") > store.value(before, "restarts")) moments.push(round.time);
  });
  return {data, moments};
}

function binary() {
  return Array.from({length: 34}, (_, power) => 2 ** (power + 10));
}

function keyItem(line) {
  const item = document.createElement("li"), swatch = document.createElement("i"), value = document.createElement("b");
  swatch.style.setProperty("--shade", `var(${line.colour})`);
  swatch.className = line.mark ? "mark" : ["", "dashed", "dotted"][line.dash];
  item.append(swatch, line.label, value);
  return item;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** All charts: `draw(store, seconds)`; a change of the colour scheme draws them anew. */
export class Charts {
  constructor() {
    this.all = Object.keys(KINDS).map((name) => new Chart(name));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.all.forEach((chart) => chart.discard());
      if (this.last) this.draw(...this.last);
    });
  }

  draw(store, seconds) {
    this.last = [store, seconds];
    for (const chart of this.all) chart.draw(store, seconds);
  }
}
