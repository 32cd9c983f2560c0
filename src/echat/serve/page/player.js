// Playback: a queue of answers that reports how much of each was played.

import { RATE } from "./pcm.js";

export class Player extends EventTarget {
  // Events: began {id}, played {id, samples}, gap {id, seconds}, dry {id, isEnd}.

  async open() {
    this.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await this.context.audioWorklet.addModule("/page/player-worklet.js");
    this.node = new AudioWorkletNode(this.context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.port.onmessage = ({ data }) => this.handleReport(data);
    this.node.connect(this.context.destination);
    this.stops = [];
    await this.context.resume();
  }

  handleReport(report) {
    if (report.kind === "stopped") this.stops[report.number](report);
    else this.dispatchEvent(new CustomEvent(report.kind, { detail: report }));
  }

  ask(what, fields = {}, transfer = []) {
    this.node?.port.postMessage({ do: what, ...fields }, transfer);
  }

  push(id, samples) {
    if (samples.length) this.ask("push", { id, samples }, [samples.buffer]);
  }

  /** The audio of this answer is complete. */
  finish(id) {
    this.ask("finish", { id });
  }

  pause() {
    this.ask("pause");
  }

  resume() {
    this.ask("resume");
  }

  /** Stop now. Returns the interrupted answer (null: none) and its played milliseconds. */
  async stop() {
    const report = await new Promise((resolve) => {
      this.ask("stop", { number: this.stops.push(resolve) - 1 });
    });
    const onTheWay = 1000 * (this.context.outputLatency || 0); // output latency
    return { id: report.id, playedMs: Math.max(0, Math.floor((1000 * report.played) / RATE - onTheWay)) };
  }

  async close() {
    if (this.context && this.context.state !== "closed") await this.context.close();
  }
}
