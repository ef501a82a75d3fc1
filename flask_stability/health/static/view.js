// Banner, checks and tables. Elements are made once and then only rewritten.

import {note, reason} from "./reasons.js";
import {ago, bytes, bytesRoughly, count, decimal, known, ms, second, share, span, t, time} from "./words.js";

const BEATS = 60;
const byId = (id) => document.getElementById(id);

/** Set a text only where it changed, so that nothing is read out twice. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** As many children as there are items, made by `make` and rewritten by `fill`. */
function repeat(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, index) => fill(parent.children[index], item));
}

const element = (name, className = "") => Object.assign(document.createElement(name), {className});

// -- the banner -----------------------------------------------------------------------------------------------------

/** The overall state; or that there is no answer, above the last picture. `trouble`: "", "stale" or "refused". */
export function showBanner(store, trouble) {
  const {health} = store, now = store.now();
  document.body.classList.toggle("stale", trouble !== "");
  byId("refused").hidden = trouble !== "refused";
  if (trouble === "refused") {
    banner("none", t("refused"), health ? t("refused_hint", {time: second(store.at)}) : "", []);
  } else if (trouble) {
    const hint = health ? t("stale_since", {time: second(store.at), span: span(now - store.at)}) : "";
    banner("none", t("stale"), hint, []);
  } else if (health) {
    const {time: begun, exact} = store.since(health.status);
    const values = {time: time(begun, now), span: span(now - begun)};
    const hung = health.detailed.hung?.length ?? 0, shown = health.status === "pass" && hung ? "warn" : health.status;
    const notes = [...health.notes.map(note), ...(hung ? [t("hung_now", {number: count(hung)})] : [])];
    banner(shown, t(shown), t(exact ? "since" : "since_least", values), notes);
  }
  if (health) write(byId("updated"), t("updated", {time: second(store.at)}));
  const sign = {pass: "✓", warn: "!", fail: "✕"}[trouble ? "" : byId("banner").dataset.status] ?? "?";
  document.title = `${sign} ${byId("service").textContent}`;
}

function banner(status, state, since, notes) {
  byId("banner").dataset.status = status;
  write(byId("state"), state);
  write(byId("since"), since);
  repeat(byId("notes"), notes, () => element("li"), write);
}

export function showFacts(store) {
  const {detailed, checks} = store.health, last = store.rounds.at(-1), {workers} = detailed;
  const ready = workers.filter((worker) => worker.state === "ready").length;
  const errors = detailed.error_rate ?? {}, failed = errors["1m"];
  const refused = failed?.refused ? ` · ${t("refused_now", {share: share(failed.refused / failed.requests)})}` : "";
  write(byId("errors_now"), failed
    ? t("errors_now_of", {minute: share(failed.rate), five: share(errors["5m"].rate)}) + refused : "–");
  byId("errors_now").dataset.status = failed?.errors ? errors.status === "pass" ? "warn" : errors.status : "";
  write(byId("availability"), share(detailed.availability.ratio));
  write(byId("requests_rate"), decimal(store.rate()));
  write(byId("p95_now"), ms(last && store.value(last, "p95_ms") || null));
  const overload = detailed.overload ?? {};
  write(byId("queue_now"), overload.workers ? t("queue_refused", {number: count(overload.refused)})
    : ms(overload.wait_p95_ms ?? null));
  byId("queue_now").dataset.status = overload.workers ? "warn" : "";
  write(byId("workers_now"), ready === workers.length ? count(ready) : t("ready_of", {ready, all: workers.length}));
  write(byId("uptime"), span(checks.uptime[0].observedValue));
  write(byId("restarts_total"), count(detailed.restarts.total));
}

// -- the checks -----------------------------------------------------------------------------------------------------

function makeCheck() {
  const item = element("li"), beats = element("span", "beats");
  beats.setAttribute("role", "img");
  beats.append(...Array.from({length: BEATS}, () => element("i")));
  item.append(element("span", "sign"), element("span", "name"), beats, element("span", "share"));
  item.firstChild.ariaHidden = "true";
  return item;
}

const BAD = {fail: 2, warn: 1};

/** A bar of beats for each check: failing ones first, then the critical. */
export function showChecks(store, seconds) {
  const checks = Object.entries(store.health.detailed.checks)
    .sort(([a, one], [b, other]) => (BAD[other.status] ?? 0) - (BAD[one.status] ?? 0)
      || other.critical - one.critical || a.localeCompare(b));
  const mutes = new Map((store.health.detailed.mutes ?? []).map((mute) => [mute.check, mute]));
  repeat(byId("checks"), checks, makeCheck, (item, [name, check]) => {
    const [, label, beats, good] = item.children;
    const found = store.beats(name, seconds, BEATS);
    item.dataset.status = check.status;
    const mute = mutes.get(name);
    write(label, [name, check.critical && t("critical"), mute && t("muted", {time: time(mute.until, store.now())})]
      .filter(Boolean).join(" · "));
    label.title = reason(check.note || check.cause || check.error || "");
    found.parts.forEach((status, index) => {
      if (beats.children[index].className !== status) beats.children[index].className = status;
    });
    const words = {name, status: t(`status_${check.status}`), share: share(found.share)};
    beats.ariaLabel = t(found.share === null ? "no_beats" : "beats", words);
    write(good, share(found.share));
  });
}

// -- the tables -----------------------------------------------------------------------------------------------------

/** A text that opens to show lines below it; it stays as the reader left it. */
function writeMore(place, text, lines) {
  if (place.firstElementChild?.tagName !== "DETAILS") {
    const made = element("details");
    made.append(element("summary"));
    place.replaceChildren(made);
  }
  const [summary] = place.firstElementChild.children;
  write(summary, text);
  const shown = [...place.firstElementChild.children].slice(1);
  lines.forEach((line, index) => {
    const one = shown[index] ?? element("code");
    if (!shown[index]) place.firstElementChild.append(one);
    write(one, line);
  });
  shown.slice(lines.length).forEach((one) => one.remove());
}

/** Rows of cells into a table; a cell is a text, or {text, title, status, more}. */
function fillTable(name, rows) {
  const table = byId(name), head = [...table.tHead.rows[0].cells];
  table.hidden = rows.length === 0;
  byId(`${name}-empty`).hidden = rows.length > 0;
  const makeRow = () => {
    const row = element("tr");
    row.append(...head.map((cell, index) => {
      const made = element(index === 0 ? "th" : "td", cell.className);
      if (index === 0) made.scope = "row";
      return made;
    }));
    return row;
  };
  repeat(table.tBodies[0], rows, makeRow, (row, cells) => cells.forEach((cell, index) => {
    const {text, title = "", status = "", more = []} = typeof cell === "object" ? cell : {text: cell};
    const place = row.cells[index];
    if (more.length) writeMore(place, text, more);
    else write(place, text);
    if (place.title !== title) place.title = title;
    if ((place.dataset.status ?? "") !== status) place.dataset.status = status;
  }));
}

const moment = (seconds, now) => ({text: ago(now - seconds), title: `${time(seconds, now)} · ${second(seconds)}`});
const routeName = (route) => route === "" ? t("unmatched") : route;

export function showTables(store) {
  const {detailed} = store.health, now = store.now();
  const memory = new Map(detailed.memory.workers.map((worker) => [worker.slot, worker]));
  fillTable("workers", detailed.workers.map((worker) => workerRow(worker, memory.get(worker.slot) ?? {})));
  fillTable("transitions", store.transitions.slice(0, 50).map((one) => [
    moment(one.time, now), one.check,
    {text: `${t(`status_${one.old}`)} → ${t(`status_${one.new}`)}`, status: one.new}, reason(one.detail ?? "")]));
  fillTable("restarts", detailed.restarts.latest.map((one) => [
    moment(one.time, now), known(`reason_${one.reason}`) ?? one.reason, String(one.pid), span(one.uptime_s), one.detail]));
  fillTable("slow", detailed.requests.slowest.map((one) => [
    `${one.method} ${one.method ? routeName(one.endpoint) : t("other")}`, count(one.requests), ms(one.mean_ms),
    ms(one.slowest_ms)]));
  fillTable("exceptions", detailed.exceptions.latest.map((one) => [
    {text: one.class.split(".").at(-1), more: [one.class, one.where, one.request_id && t("request_is", {id: one.request_id}),
      one.request_id && `grep ${one.request_id} error.log`].filter(Boolean)},
    routeName(one.route), one.where ?? "", count(one.count), moment(one.last, now)]));
  fillSection("hung", (detailed.hung ?? []).map((one) => [
    span(one.seconds), `${one.method} ${one.route || one.path}`, one.where, String(one.slot),
    {text: one.request_id, more: [`grep ${one.request_id} error.log`]}]));
  fillSection("failing", (detailed.error_rate?.routes ?? []).map((one) => [
    `${one.method} ${one.method ? routeName(one.endpoint) : t("other")}`,
    ...["1m", "5m"].flatMap((window) => [{text: share(one[window].rate), status: one[window].errors ? "fail" : "",
      title: t("failed_of", {errors: count(one[window].errors), all: count(one[window].requests)})}])]));
}

/** A table that is only there while it has rows. */
function fillSection(name, rows) {
  byId(`${name}-card`).hidden = rows.length === 0;
  fillTable(name, rows);
}

function workerRow(worker, memory) {
  const trend = memory.trend_bytes_per_min ?? 0, limit = memory.limit_bytes ?? 0, steady = Math.abs(trend) < 1024;
  const left = memory.seconds_to_limit;
  const used = limit ? t("of_limit", {share: share(worker.private_bytes / limit)}) : "";
  return [
    String(worker.slot), String(worker.pid),
    {text: t(worker.state), status: worker.state === "ready" ? memory.status ?? "pass" : "warn",
      title: worker.retiring === "none" ? "" : known(`reason_${worker.retiring}`) ?? worker.retiring},
    span(worker.uptime_s), {text: bytes(worker.rss_bytes), title: used},
    steady ? t("steady") : `${trend > 0 ? "+" : "−"}${t("per_minute", {size: bytesRoughly(Math.abs(trend))})}`,
    left == null || (steady && left > 3600) ? "–" : span(left),
    `${worker.busy}/${worker.threads}`, count(worker.requests)];
}
