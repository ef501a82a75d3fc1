// Polls the history and shows it. What was seen last stays when there is no answer.

import {Charts} from "./charts.js";
import {Store} from "./store.js";
import {showBanner, showChecks, showFacts, showTables} from "./view.js";

const PAUSE = 5000;  // milliseconds between polls
const PATIENCE = 8000;
const PAGE = 480;  // rounds asked for at once, so that no answer is long
const RANGES = {hour: 3600, day: 86400};

const store = new Store(), charts = new Charts();
let seconds = RANGES.hour, trouble = "", timer = 0, polling = false, drawn = "";

/** One answer of the history from where the store is. */
async function ask() {
  const query = new URLSearchParams({since: store.cursor, changes: store.changes, limit: PAGE, with: "health"});
  const answer = await fetch(`history?${query}`, {cache: "no-store", redirect: "error",
    signal: AbortSignal.timeout(PATIENCE)});
  if (answer.status === 401) return null;
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

/** Ask until there is nothing more, and show it; never rejects. */
export async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  try {
    for (let more = true; more;) {
      const answer = await ask();
      trouble = answer ? "" : "refused";
      more = Boolean(answer) && (!store.take(answer) || answer.more);
    }
  } catch {
    trouble = "stale";
  }
  try {
    show();
  } finally {
    polling = false;
    if (!document.hidden) timer = setTimeout(poll, PAUSE);
  }
}

function show() {
  showBanner(store, trouble);
  if (!store.health) return;
  showFacts(store);
  showChecks(store, seconds);
  showTables(store);
  const wanted = `${store.life} ${store.version} ${seconds}`;
  if (wanted !== drawn) charts.draw(store, seconds);
  drawn = wanted;
}

function choose(name) {
  seconds = RANGES[name];
  for (const id of Object.keys(RANGES)) document.getElementById(id).ariaPressed = String(id === name);
  show();
}

for (const id of Object.keys(RANGES)) document.getElementById(id).addEventListener("click", () => choose(id));
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
poll();
