// Latency as the user perceives it: from the end of the turn to the first audio that is played.

import { RATE } from "./pcm.js";

export class Stopwatch {
  constructor() {
    this.samples = 0; // sent so far
    this.at = 0; // when the last of them were sent
    this.begin();
  }

  begin() {
    this.end = null; // of the turn
    this.marks = {};
    this.gaps = [];
    this.seconds = {}; // by stage, as the server measured them
  }

  sent(count) {
    this.samples += count;
    this.at = performance.now();
  }

  /** The turn ended at this millisecond of the audio that was sent. */
  turnEnded(endMs) {
    this.begin();
    this.end = this.at - (this.samples / (RATE / 1000) - endMs);
  }

  /** Something happened for the first time after the turn. */
  mark(name) {
    if (this.end !== null) this.marks[name] ??= (performance.now() - this.end) / 1000;
  }

  gap(seconds) {
    this.gaps.push(seconds);
  }

  report() {
    return { marks: { ...this.marks }, gaps: [...this.gaps], seconds: { ...this.seconds } };
  }
}
