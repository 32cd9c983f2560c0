// Audio thread: plays the queue, counts the played samples, stops at once.

import { RATE } from "./pcm.js";

const CUSHION = 0.06 * RATE; // samples buffered before an answer starts
const REPORT = RATE / 25; // samples played between two reports
const FADE = 0.005 * RATE; // samples of a fade-out, against clicks

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = []; // {id, samples, position}
    this.id = null; // the answer that is played, or was last
    this.played = 0; // samples of it
    this.finished = new Set(); // ids of complete answers
    this.isPaused = false;
    this.isWaiting = true; // for the cushion
    this.gain = 1;
    this.gap = 0; // samples of silence inside an answer
    this.report = new Float32Array(REPORT);
    this.reported = 0;
    this.port.onmessage = ({ data }) => this[data.do](data);
  }

  push({ id, samples }) {
    this.queue.push({ id, samples, position: 0 });
  }

  finish({ id }) {
    this.finished.add(id);
  }

  pause() {
    this.isPaused = true;
  }

  resume() {
    this.isPaused = false;
  }

  /** Drop the queue; report how much of the present answer was played. */
  stop({ number }) {
    const next = this.queue[0]?.id ?? null;
    const cut = next ?? (this.finished.has(this.id) ? null : this.id);
    const played = cut === this.id ? this.played : 0;
    this.queue = [];
    this.isPaused = false;
    this.isWaiting = true;
    this.gain = 1;
    this.flush();
    this.port.postMessage({ kind: "stopped", number, id: cut, played });
  }

  process(_, [[output]]) {
    for (let index = 0; index < output.length; index += 1) output[index] = this.next();
    return true;
  }

  next() {
    this.gain = Math.min(1, Math.max(0, this.gain + (this.isPaused ? -1 : 1) / FADE));
    if (this.gain === 0 || !this.isReady()) return 0;
    const piece = this.queue[0];
    if (piece.id !== this.id) this.begin(piece.id);
    const sample = piece.samples[piece.position];
    piece.position += 1;
    this.played += 1;
    if (piece.position === piece.samples.length) this.queue.shift();
    this.addToReport(sample);
    return sample * this.gain;
  }

  isReady() {
    if (!this.queue.length) {
      if (!this.isWaiting) this.runDry();
      if (this.id !== null && !this.finished.has(this.id)) this.gap += 1;
      return false;
    }
    if (this.isWaiting) {
      const waiting = this.queue.reduce((sum, piece) => sum + piece.samples.length - piece.position, 0);
      this.isWaiting = waiting < CUSHION && !this.finished.has(this.queue[0].id);
    }
    return !this.isWaiting;
  }

  begin(id) {
    this.id = id;
    this.played = 0;
    this.gap = 0;
    this.port.postMessage({ kind: "began", id });
  }

  runDry() {
    this.isWaiting = true;
    this.flush();
    this.port.postMessage({ kind: "dry", id: this.id, isEnd: this.finished.has(this.id) });
  }

  addToReport(sample) {
    if (this.gap) {
      this.port.postMessage({ kind: "gap", id: this.id, seconds: this.gap / RATE });
      this.gap = 0;
    }
    this.report[this.reported] = sample;
    this.reported += 1;
    if (this.reported === REPORT) this.flush();
  }

  flush() {
    if (!this.reported) return;
    this.port.postMessage({ kind: "played", id: this.id, samples: this.report.slice(0, this.reported) });
    this.reported = 0;
  }
}

registerProcessor("player", Player);
