// A small picture of what the engine is doing: tokens per second over the last minute, who runs and who waits, and how
// much of the memory for keys and values is taken.

import { getText } from "./api.js";
import { $, el, svg } from "./dom.js";
import { number, t } from "./strings.js";

const BUSY_MS = 1_000;
const IDLE_MS = 5_000;
const SAMPLES = 60;
const [WIDTH, HEIGHT, CELLS] = [216, 30, 36];

// The numbers of Prometheus' text form that have no labels.
export const parseMetrics = (text) =>
  Object.fromEntries([...text.matchAll(/^lowbit_(\w+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]));

export class EnginePicture {
  constructor(changed) {
    Object.assign(this, { changed, speeds: [], last: null, gone: false, timer: 0, now: null, active: false });
    document.addEventListener("visibilitychange", () => this.look());
  }

  // While answers come to this page, look more often.
  watch(active) {
    if (this.active === active) return;
    this.active = active;
    this.look();
  }

  async look() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      this.take(parseMetrics(await getText("metrics")));
      this.say(false);
    } catch (error) {
      this.now = null;
      this.say(error.kind === "gone");
    }
    this.draw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), this.active || this.now?.running ? BUSY_MS : IDLE_MS);
  }

  say(gone) {
    if (gone !== this.gone) this.changed(gone);
    this.gone = gone;
  }

  take(metrics) {
    const at = performance.now();
    const tokens = metrics.tokens_total ?? 0;
    const speed = this.last && tokens >= this.last.tokens ? (tokens - this.last.tokens) / (at - this.last.at) * 1000 : 0;
    this.last = { at, tokens };
    this.speeds = [...this.speeds, speed].slice(-SAMPLES);
    this.now = { speed, running: metrics.requests_running, waiting: metrics.requests_waiting,
      held: metrics.kv_blocks_held, known: metrics.kv_blocks_known, all: Math.max(0, metrics.kv_blocks_limit) };
  }

  draw() {
    const box = $("engine");
    box.hidden = !this.now && !this.gone;
    if (!this.now) {
      box.replaceChildren(el("p", { class: "engine-line" }, el("span", { class: "gone" }, t("unreachable"))));
      return;
    }
    const { speed, running, waiting, held, known, all } = this.now;
    const says = [t("engineSays", { running, waiting })];
    says.push(all ? t("engineBlocks", { held, all }) : t("engineBlocksHeld", { held }));
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 12}`, role: "img", "aria-label": says.join(", ") },
      this.curve(), ...cells(held, known, all));
    const line = el("p", { class: "engine-line" },
      el("span", { class: running ? "on" : "" }, running || waiting ? t("engineSays", { running, waiting }) : t("idle")),
      el("span", {}, speed ? t("speed", { n: number(speed, 2) }) : ""));
    box.replaceChildren(line, picture);
    box.title = says.join("\n");
  }

  curve() {
    const most = Math.max(1, ...this.speeds);
    const step = WIDTH / (SAMPLES - 1);
    const left = WIDTH - (this.speeds.length - 1) * step;
    const points = this.speeds.map((speed, i) =>
      `${(left + i * step).toFixed(1)},${(HEIGHT - 1 - (HEIGHT - 4) * speed / most).toFixed(1)}`);
    return svg("g", {}, svg("polygon", { class: "area", points: `${left},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` }),
      svg("polyline", { class: "curve", points: points.join(" ") }),
      svg("line", { class: "ground", x1: 0, x2: WIDTH, y1: HEIGHT - .5, y2: HEIGHT - .5 }));
  }
}

// Dark: held by somebody who is being answered. Light: remembered, in case the same text comes again.
function cells(held, known, all) {
  const total = all || Math.max(held + known, CELLS);
  const size = WIDTH / CELLS;
  const kind = (i) => i < Math.ceil(held / total * CELLS) ? "held" : i < (held + known) / total * CELLS ? "known" : "free";
  return Array.from({ length: CELLS }, (_, i) =>
    svg("rect", { class: kind(i), x: i * size + .5, y: HEIGHT + 5, width: size - 1.5, height: 6, rx: 1 }));
}
