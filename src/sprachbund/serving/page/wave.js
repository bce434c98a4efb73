// How loud it was over the last seconds, in the colours of the languages heard.

const BAR = 3;
const GAP = 2;
const FRAME_S = 0.1;
const FLOOR_DB = -54;
const CEILING_DB = -6;

export class Wave {
  constructor(canvas) {
    this.canvas = canvas;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  clear() {
    this.levels = []; // the newest last
    this.count = 0; // of all frames since the start
    this.spans = []; // {start_s, end_s, hue}
    this.draw();
  }

  /** Adds 100 ms; `level` is the root mean square, 0 to 1. */
  push(level) {
    const decibels = 20 * Math.log10(Math.max(level, 1e-6));
    this.levels.push(Math.max(0, Math.min(1, (decibels - FLOOR_DB) / (CEILING_DB - FLOOR_DB))) ** 1.5);
    this.count += 1;
    if (this.levels.length > 1000) this.levels.splice(0, 500);
    this.draw();
  }

  /** What was heard between two seconds was in the language of this colour. */
  colour(start_s, end_s, hue) {
    this.spans = this.spans.filter((span) => span.end_s <= start_s || span.start_s >= end_s).slice(-200);
    this.spans.push({ start_s, end_s, hue });
  }

  draw() {
    const { canvas } = this;
    this.colours = new Map();
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (this.still.matches) this.meter(pen, width, height);
    else this.bars(pen, width, height);
  }

  bars(pen, width, height) {
    const room = Math.ceil(width / (BAR + GAP));
    for (let i = 0; i < room; i++) {
      const level = this.levels[this.levels.length - 1 - i] ?? 0;
      const tall = Math.max(2, level * (height - 4));
      pen.fillStyle = this.paint((this.count - 0.5 - i) * FRAME_S, level);
      pen.beginPath();
      pen.roundRect(width - (i + 1) * (BAR + GAP) + GAP, (height - tall) / 2, BAR, tall, BAR / 2);
      pen.fill();
    }
  }

  paint(second, level) {
    const span = this.spans.findLast(({ start_s, end_s }) => start_s <= second && second <= end_s);
    return this.colourOf(level === 0 ? "--line" : span ? `--hue-${span.hue}` : "--ink-2");
  }

  /** The value that a variable of the style sheet has just now, light or dark. */
  colourOf(name) {
    if (!this.colours.has(name)) {
      this.canvas.style.color = `var(${name})`;
      this.colours.set(name, getComputedStyle(this.canvas).color);
    }
    return this.colours.get(name);
  }

  /** For who wants no motion: one bar that fills in place. */
  meter(pen, width, height) {
    const level = this.levels.at(-1) ?? 0;
    pen.fillStyle = this.colourOf("--line");
    pen.fillRect(0, height / 2 - 4, width, 8);
    pen.fillStyle = this.colourOf("--ink-2");
    pen.fillRect(0, height / 2 - 4, width * level, 8);
  }
}
