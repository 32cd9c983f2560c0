// Streaming resampler from the rate of the device to 24 kHz: a windowed sinc (Hann), cut off below the lower of
// both Nyquist frequencies.

const ZEROS = 16; // zero crossings of the sinc on each side

export class Resampler {
  constructor(from, to) {
    this.step = from / to; // input samples for one output sample
    this.cutoff = 0.92 * Math.min(1, to / from); // as a share of the input's Nyquist frequency
    this.reach = Math.ceil(ZEROS / this.cutoff); // input samples on each side
    this.kept = new Float32Array(this.reach); // silence before the first sample
    this.position = this.reach; // of the next output sample, in `kept`
    this.weights = new Map();
  }

  /** The output samples that these input samples complete. */
  push(samples) {
    if (this.step === 1) return samples.slice();
    const input = new Float32Array(this.kept.length + samples.length);
    input.set(this.kept);
    input.set(samples, this.kept.length);
    const output = [];
    while (Math.floor(this.position) + this.reach < input.length) {
      output.push(this.at(input, this.position));
      this.position += this.step;
    }
    const done = Math.floor(this.position) - this.reach;
    this.kept = input.slice(done);
    this.position -= done;
    return Float32Array.from(output);
  }

  at(input, position) {
    const whole = Math.floor(position);
    const weights = this.weightsAt(position - whole);
    let sum = 0;
    for (let tap = 0; tap < weights.length; tap += 1) sum += weights[tap] * input[whole - this.reach + 1 + tap];
    return sum;
  }

  /** Weights of the 2 * reach input samples around a fraction; one table per fraction, in 512 steps. */
  weightsAt(fraction) {
    const key = Math.round(512 * fraction);
    if (!this.weights.has(key)) {
      const taps = Array.from({ length: 2 * this.reach }, (_, tap) => {
        const distance = tap - this.reach + 1 - key / 512;
        const x = Math.PI * this.cutoff * distance;
        const window = 0.5 + 0.5 * Math.cos((Math.PI * distance) / this.reach);
        return Math.abs(distance) >= this.reach ? 0 : window * (x === 0 ? 1 : Math.sin(x) / x);
      });
      const sum = taps.reduce((total, weight) => total + weight, 0);
      this.weights.set(key, Float32Array.from(taps, (weight) => weight / sum));
    }
    return this.weights.get(key);
  }
}
