// Audio thread: the microphone as mono at 24 kHz, in pieces of 20 ms.

import { RATE } from "./pcm.js";
import { Resampler } from "./resampler.js";

const PIECE = RATE / 50;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.piece = new Float32Array(PIECE);
    this.filled = 0;
  }

  process([channels]) {
    if (channels.length) this.resampler.push(mean(channels)).forEach((sample) => this.take(sample));
    return true;
  }

  take(sample) {
    this.piece[this.filled] = sample;
    this.filled += 1;
    if (this.filled === PIECE) {
      this.port.postMessage(this.piece.slice());
      this.filled = 0;
    }
  }
}

function mean(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, index) => channels.reduce((sum, one) => sum + one[index], 0) / channels.length);
}

registerProcessor("capture", Capture);
