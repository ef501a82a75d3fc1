// Texts in the page's language, and how numbers and times are written in it.

const texts = JSON.parse(document.getElementById("words").content.textContent);
export const language = document.documentElement.lang;
const joint = language === "zh" ? "" : " ";
const clock = new Intl.DateTimeFormat(language, {hour: "2-digit", minute: "2-digit", hourCycle: "h23"});
const exact = new Intl.DateTimeFormat(language, {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"});
const dated = new Intl.DateTimeFormat(language, {month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
  hourCycle: "h23"});
const whole = new Intl.NumberFormat(language, {maximumFractionDigits: 0});
const exactly = new Intl.NumberFormat(language, {maximumFractionDigits: 3});
const rough = new Intl.NumberFormat(language, {maximumSignificantDigits: 2});
const short = new Intl.NumberFormat(language, {maximumSignificantDigits: 3});

/** The text of a key, with {names} replaced. */
export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** A text only if there is one. */
export const known = (key) => texts[key];

export const count = (number) => number == null ? "–" : whole.format(number);

export const decimal = (number) => number == null ? "–" : number >= 1000 ? whole.format(number) : short.format(number);

/** A duration given in milliseconds. */
export function ms(number) {
  if (number == null) return "–";
  return number < 1000 ? `${short.format(number)} ms` : `${short.format(number / 1000)}${joint}${t("s")}`;
}

export function bytes(number, form = short) {
  if (number == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0, left = number;
  while (Math.abs(left) >= 1000 && unit < 4) { left /= 1024; unit += 1; }
  return `${form.format(left)} ${units[unit]}`;
}

export const bytesRoughly = (number) => bytes(number, rough);

/** A share as a percentage that never rounds up to 100 %. */
export function share(ratio) {
  if (ratio == null) return "–";
  const digits = ratio > 0.9999 ? 1000 : ratio > 0.99 ? 100 : 10;
  const number = Math.floor(ratio * 100 * digits + 1e-9) / digits;
  return `${exactly.format(number)}${language === "zh" ? "%" : " %"}`;
}

/** A duration in seconds, in its largest unit, and in the next one where that matters. */
export function span(seconds) {
  if (seconds == null) return "–";
  const left = Math.max(0, Math.round(seconds));
  const parts = [[left / 86400, "d"], [left % 86400 / 3600, "h"], [left % 3600 / 60, "min"], [left % 60, "s"]]
    .map(([number, unit]) => [Math.floor(number), unit]);
  const first = parts.findIndex(([number]) => number > 0);
  if (first < 0) return `0${joint}${t("s")}`;
  return parts.slice(first, parts[first][0] < 10 ? first + 2 : first + 1).filter(([number], index) => index === 0 || number > 0)
    .map(([number, unit]) => `${number}${joint}${t(unit)}`).join(" ");
}

/** How long ago, in one unit. */
export function ago(seconds) {
  if (seconds < 5) return t("just_now");
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([least]) => seconds >= least);
  return t("ago", {span: `${Math.floor(seconds / size)}${joint}${t(unit)}`});
}

/** Time of day; with the date if it is not of the last 20 hours. */
export function time(seconds, now = Date.now() / 1000) {
  return (now - seconds > 72000 ? dated : clock).format(seconds * 1000);
}

export const second = (seconds) => exact.format(seconds * 1000);
