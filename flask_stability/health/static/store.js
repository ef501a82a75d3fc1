// What is known: the rounds of the last 24 hours, the transitions, the latest health document. Bounded.

const ROUNDS = 2880;
const TRANSITIONS = 240;
const STATUS = ["none", "pass", "warn", "fail"];

export class Store {
  constructor() {
    this.forget("");
    this.answeredAt = 0;  // by the clock of this machine
    this.health = null;
  }

  /** Another life of the service: its history began anew. */
  forget(life) {
    this.life = life;
    this.cursor = 0;
    this.changes = 0;
    this.rounds = [];
    this.transitions = [];
    this.names = [];
    this.version = 0;  // changes with the rounds
  }

  /** Take an answer in; false if it is of another life, and has to be asked again from the beginning. */
  take(answer) {
    if (answer.life !== this.life || answer.cursor < this.cursor) {
      const fresh = this.cursor === 0;
      this.forget(answer.life);
      if (!fresh) return false;
    }
    this.fields ??= Object.fromEntries(answer.fields.map((name, index) => [name, index]));
    answer.samples.forEach((values, index) => this.rounds.push(
      {time: values[0], values, workers: answer.workers[index], beats: answer.beats[index]}));
    if (this.rounds.length > ROUNDS) this.rounds.splice(0, this.rounds.length - ROUNDS);
    if (answer.samples.length) this.version += 1;
    const seen = new Set(this.transitions.slice(0, 20).map((one) => one.id));
    this.transitions.unshift(...answer.transitions.filter((one) => !seen.has(one.id)));
    this.transitions.length = Math.min(this.transitions.length, TRANSITIONS);
    this.names = answer.check_names;
    this.cursor = answer.cursor;
    this.changes = answer.changes;
    this.offset = answer.now - Date.now() / 1000;  // the service's clock is the page's
    if (answer.health) {
      this.before = this.health && {requests: this.health.detailed.requests.total, time: this.at};
      this.health = answer.health;
      this.at = answer.now;
      this.answeredAt = Date.now() / 1000;
    }
    return true;
  }

  /** Seconds since the epoch by the service's clock. */
  now() { return Date.now() / 1000 + (this.offset ?? 0); }

  value(round, name) { return round.values[this.fields[name]]; }

  /** The rounds of the last so many seconds, and the one before them. */
  window(seconds) {
    const first = this.rounds.findIndex((round) => round.time >= this.now() - seconds);
    return first < 0 ? [] : this.rounds.slice(Math.max(0, first - 1));
  }

  /** Requests per second between the latest two polls, or in the latest round. */
  rate() {
    const {before, health} = this;
    if (before && this.at > before.time && health.detailed.requests.total >= before.requests)
      return (health.detailed.requests.total - before.requests) / (this.at - before.time);
    const [old, last] = this.rounds.slice(-2);
    return last ? (this.value(last, "requests") - this.value(old, "requests")) / (last.time - old.time) : null;
  }

  /** Since when the overall status is what it is: {time, exact}; exact: it was another before. */
  since(status) {
    const code = STATUS.indexOf(status) - 1;
    let first = this.rounds.length;
    while (first > 0 && this.value(this.rounds[first - 1], "status") === code) first -= 1;
    const after = this.rounds[first - 1]?.time ?? -Infinity, until = this.rounds[first]?.time ?? Infinity;
    // a transition tells more exactly than the round after it
    const change = this.transitions.find((one) => one.time > after && one.time <= until && after > -Infinity);
    if (change) return {time: change.time, exact: true};
    if (first < this.rounds.length) return {time: until, exact: first > 0};
    return {time: this.at, exact: first > 0};
  }

  /** How a check was in `number` equal parts of the last so many seconds, and the share of good rounds. */
  beats(name, seconds, number) {
    const index = this.names.indexOf(name), parts = new Array(number).fill(0);
    const end = this.now(), begin = end - seconds;
    let good = 0, all = 0;
    for (let at = this.rounds.length - 1; at >= 0 && this.rounds[at].time >= begin; at -= 1) {
      const beat = Number(this.rounds[at].beats[index] ?? 0);
      const part = Math.min(number - 1, Math.floor((this.rounds[at].time - begin) / seconds * number));
      parts[part] = Math.max(parts[part], beat);
      good += beat === 1;
      all += beat > 0;
    }
    return {parts: parts.map((beat) => STATUS[beat]), share: all ? good / all : null};
  }
}
