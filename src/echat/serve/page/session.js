// One session: microphone -> connection -> loudspeaker, and barge-in.
//
// Events: state {name}, recording {message}, trouble {message}, over {}, input {samples}, output {samples},
// and for the history: turn {id, role}, words {id, text, whole}, transcript {id, text}, thought {id, ...},
// answered {id, status}, cut {id, text}, timing {...}.

import { Connection } from "./connection.js";
import { Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { Stopwatch } from "./stopwatch.js";
import { decode, encode } from "./pcm.js";

export class Session extends EventTarget {
  /** `history`: turns {role, text} of an earlier session to continue. */
  constructor({ model, key, think, voice, history = [] }) {
    super();
    this.connection = new Connection(model, key);
    this.microphone = new Microphone((samples) => this.sendAudio(samples));
    this.player = new Player();
    this.stopwatch = new Stopwatch();
    this.settings = { think, voice };
    this.history = history;
    this.silenced = new Set(); // ids of interrupted answers
    this.answer = null; // {id, responseId} that is generated, or still played
    this.received = new Map(); // answer id -> milliseconds of audio received
  }

  async open() {
    this.emit("state", { name: "connecting" });
    try {
      await this.player.open();
      this.addHandlers();
      await this.connection.open();
      this.update();
      this.sendHistory();
      await this.microphone.open();
    } catch (error) {
      await this.close();
      throw error;
    }
    this.emit("state", { name: "ready" });
  }

  async close() {
    this.connection.close();
    await Promise.all([this.microphone.close(), this.player.close()]);
  }

  emit(kind, detail = {}) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  // --- settings

  update() {
    const { think, voice } = this.settings;
    const output = voice ? { voice } : {};
    this.connection.send("session.update", {
      session: {
        type: "realtime",
        audio: { input: { transcription: {} }, output },
        echat: { think, show_thought: true, pause: true },
      },
    });
  }

  sendHistory() {
    this.history.forEach(({ role, text }) => {
      const content = [{ type: role === "user" ? "input_text" : "output_text", text }];
      this.connection.send("conversation.item.create", { item: { type: "message", role, content } });
    });
  }

  /** From the next answer on. */
  setThink(think) {
    this.settings.think = think;
    this.connection.send("session.update", { session: { type: "realtime", echat: { think } } });
  }

  setMuted(isMuted) {
    this.microphone.isMuted = isMuted;
  }

  // --- audio of the user

  sendAudio(samples) {
    if (!this.connection.isOpen) return;
    this.stopwatch.sent(samples.length);
    this.connection.send("input_audio_buffer.append", { audio: encode(samples) });
    this.emit("input", { samples });
  }

  /** Barge-in or stop button: stop playback, and truncate the answer on the server to what was played. */
  async interrupt() {
    const answer = this.answer;
    const { id, playedMs } = await this.player.stop();
    if (answer) this.silenced.add(answer.id);
    if (id === null) return;
    this.silenced.add(id);
    const most = Math.floor(this.received.get(id) ?? 0);
    const end = Math.min(playedMs, most);
    this.connection.send("conversation.item.truncate", { item_id: id, content_index: 0, audio_end_ms: end });
    this.connection.send("conversation.item.retrieve", { item_id: id });
  }

  /** Stop an answer by the button. */
  async hush() {
    if (!this.answer) return;
    const isRunning = this.answer.isRunning;
    if (isRunning) this.connection.send("response.cancel");
    await this.interrupt();
    this.emit("state", { name: "ready" });
  }

  // --- events of the server

  addHandlers() {
    const on = (kind, handle) => this.connection.addEventListener(kind, ({ detail }) => handle(detail));
    this.handleTurns(on);
    this.handleAnswers(on);
    this.handlePlayer();
    on("session.recording", ({ message }) => this.emit("recording", { message }));
    on("error", ({ error }) => this.emit("trouble", { message: error.message }));
    on("closed", async ({ reason }) => {
      const wasOpen = this.microphone.context !== undefined;
      await this.close();
      if (wasOpen) this.emit("over", { message: reason });
    });
  }

  handleTurns(on) {
    on("input_audio_buffer.speech_suspected", () => this.player.pause());
    on("input_audio_buffer.speech_dismissed", () => this.player.resume());
    on("input_audio_buffer.speech_started", ({ item_id: id }) => {
      this.interrupt();
      this.emit("turn", { id, role: "user" });
      this.emit("state", { name: "speaking" });
    });
    on("input_audio_buffer.speech_stopped", ({ audio_end_ms: end }) => {
      this.stopwatch.turnEnded(end);
      this.emit("state", { name: "thinking" });
    });
    const kind = "conversation.item.input_audio_transcription";
    on(`${kind}.completed`, ({ item_id: id, transcript }) => this.emit("transcript", { id, text: transcript }));
    on(`${kind}.failed`, ({ item_id: id }) => this.emit("transcript", { id, text: "" }));
    on("conversation.item.retrieved", ({ item }) => {
      const text = (item.content ?? []).map((part) => part.transcript ?? "").join("");
      if (item.role === "assistant") this.emit("cut", { id: item.id, text });
    });
  }

  handleAnswers(on) {
    on("response.output_item.added", ({ item, response_id: responseId }) => {
      this.answer = { id: item.id, responseId, isRunning: true };
      this.emit("turn", { id: item.id, role: "assistant" });
      this.emit("state", { name: "thinking" });
    });
    on("response.thought.delta", ({ item_id: id, delta, labels }) => {
      this.stopwatch.mark("thought");
      this.emit("thought", { id, delta, labels });
    });
    on("response.thought.done", ({ item_id: id, thought }) => this.emit("thought", { id, thought }));
    on("response.output_audio_transcript.delta", ({ item_id: id, delta }) => {
      this.stopwatch.mark("words");
      this.emit("words", { id, text: delta });
    });
    on("response.output_audio_transcript.done", ({ item_id: id, transcript }) => {
      this.emit("words", { id, text: transcript, whole: true });
    });
    on("response.output_audio.delta", ({ item_id: id, delta }) => this.play(id, decode(delta)));
    on("response.output_audio.done", ({ item_id: id }) => this.player.finish(id));
    on("response.done", ({ response }) => this.done(response));
  }

  play(id, samples) {
    if (this.silenced.has(id)) return;
    this.received.set(id, (this.received.get(id) ?? 0) + samples.length / 24);
    this.player.push(id, samples);
  }

  done(response) {
    const id = response.output[0]?.id;
    if (this.answer?.id === id) this.answer.isRunning = false;
    const failure = response.status === "failed" ? response.status_details?.error?.message : undefined;
    this.emit("answered", { id, status: response.status, failure });
    if (response.status === "cancelled" && !this.received.has(id)) this.emit("cut", { id, text: "" });
    this.stopwatch.seconds = response.echat?.seconds ?? {};
    this.emit("timing", this.stopwatch.report());
    if (!this.received.has(id) && response.status !== "cancelled") this.emit("state", { name: "ready" });
  }

  handlePlayer() {
    const on = (kind, handle) => this.player.addEventListener(kind, ({ detail }) => handle(detail));
    on("began", ({ id }) => {
      this.stopwatch.mark("sound");
      this.emit("timing", this.stopwatch.report());
      this.emit("state", { name: "answering", id });
    });
    on("played", ({ samples, id }) => this.emit("output", { samples, id }));
    on("gap", ({ seconds }) => {
      this.stopwatch.gap(seconds);
      this.emit("timing", this.stopwatch.report());
    });
    on("dry", ({ id, isEnd }) => {
      if (isEnd && !this.silenced.has(id)) this.emit("state", { name: "ready" });
    });
  }
}
