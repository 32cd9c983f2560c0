// The last seconds of a sound, as bars that move to the left.

import { RATE } from "./pcm.js";

const BAR_SECONDS = 0.04;
const BAR_PIXELS = 4;

export class WaveformView {
  constructor(canvas) {
    this.canvas = canvas;
    this.bars = [];
    this.peak = 0;
    this.count = 0;
    this.isDue = false;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  push(samples) {
    for (const sample of samples) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.count += 1;
      if (this.count === BAR_SECONDS * RATE) this.close();
    }
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => this.draw());
  }

  close() {
    this.bars.push(this.peak);
    this.bars = this.bars.slice(-1000);
    this.peak = 0;
    this.count = 0;
  }

  draw() {
    this.isDue = false;
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const brush = canvas.getContext("2d");
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    brush.clearRect(0, 0, width, height);
    brush.fillStyle = getComputedStyle(canvas).color;
    const shown = this.bars.slice(-Math.floor(width / BAR_PIXELS));
    shown.forEach((peak, index) => {
      const bar = Math.max(1, Math.min(1, Math.sqrt(peak)) * (height - 4)); // quiet speech shows as well
      brush.fillRect(width - (shown.length - index) * BAR_PIXELS, (height - bar) / 2, BAR_PIXELS - 1, bar);
    });
  }
}
