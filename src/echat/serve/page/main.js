// The page: connects fields and buttons with a Session.

import { keep } from "./choices.js";
import { showLatency } from "./latency-view.js";
import { Session } from "./session.js";
import { TurnsView } from "./turns-view.js";
import { WaveformView } from "./waveform-view.js";

const STATES = {
  idle: "Press start, allow the microphone, and speak. No button is needed after that.",
  connecting: "Connecting …",
  ready: "Ready. Just speak.",
  speaking: "You are speaking …",
  thinking: "Thinking …",
  answering: "Answering. Speak over it to interrupt.",
};

const at = (id) => document.getElementById(id);
const turns = new TurnsView(at("turns"), at("nothing"));
const inputView = new WaveformView(at("input"));
const outputView = new WaveformView(at("output"));
let about = { model: "", voices: [], think: "label", needs_key: false };
let session = null;

async function begin() {
  about = await (await fetch("/page/about.json")).json();
  at("model").textContent = about.model;
  turns.replyEmotions = about.reply_emotions;
  at("voice").replaceChildren(...about.voices.map((name) => new Option(name, name)));
  at("key-field").hidden = !about.needs_key;
  keep(at("think"), about.think);
  keep(at("voice"), about.voices[0]);
  keep(at("key"), "");
  if (!about.voices.length) at("voice").parentElement.hidden = true;
}

// --- starting and ending

async function start() {
  say("");
  if (about.needs_key && !at("key").value) {
    say("This server asks for an API key.");
    at("key").focus();
    return;
  }
  const [model, key, history] = [about.model, at("key").value.trim(), turns.history()];
  session = new Session({ model, key, think: at("think").value, voice: at("voice").value, history });
  session.setMuted(isMuted());
  show(session);
  enable();
  try {
    await session.open();
  } catch (error) {
    end(reason(error));
  }
}

function reason(error) {
  if (error.name === "NotAllowedError") return "The microphone was not allowed. Allow it for this page, then start again.";
  if (error.name === "NotFoundError") return "No microphone was found. Connect one, then start again.";
  return error.message;
}

async function end(message = "") {
  const ended = session;
  session = null;
  state({ name: "idle" });
  say(message);
  enable();
  await ended?.close();
}

async function again() {
  const wasTalking = session !== null;
  await end();
  turns.clear();
  at("latency").hidden = true;
  if (wasTalking) await start();
  else enable();
}

// --- showing

function show(shown) {
  const on = (kind, handle) => {
    shown.addEventListener(kind, ({ detail }) => {
      if (shown === session) handle(detail);
    });
  };
  on("state", state);
  on("input", ({ samples }) => inputView.push(samples));
  on("output", ({ samples, id }) => {
    outputView.push(samples);
    document.dispatchEvent(new CustomEvent("echat-played", { detail: { id, samples } })); // for recorders and tests
  });
  on("turn", ({ id, role }) => {
    turns.add(id, role);
    enable();
  });
  on("transcript", ({ id, text }) => turns.transcript(id, text));
  on("words", ({ id, text, whole }) => turns.say(id, text, whole));
  on("thought", (detail) => turns.think(detail.id, detail));
  on("answered", ({ id, status, failure }) => turns.answered(id, status, failure));
  on("cut", ({ id, text }) => turns.cut(id, text));
  on("timing", (report) => showLatency(at("latency"), report));
  on("recording", ({ message }) => {
    at("recording").textContent = message;
    at("recording").hidden = false;
  });
  on("trouble", ({ message }) => say(message));
  on("over", ({ message }) => end(message));
}

function state({ name }) {
  document.body.dataset.state = name;
  at("status").textContent = name === "ready" && isMuted() ? "Muted: the microphone is off." : STATES[name];
  at("hush").disabled = name !== "answering" && name !== "thinking";
}

function say(trouble) {
  at("trouble").textContent = trouble;
  at("trouble").hidden = !trouble;
}

function enable() {
  const isTalking = session !== null;
  at("start").textContent = isTalking ? "Stop talking" : "Start talking";
  at("mute").disabled = !isTalking;
  at("save").disabled = at("again").disabled = turns.isEmpty;
  const isFixed = isTalking && !turns.isEmpty; // the voice of a session is fixed after its first audio
  at("voice").disabled = isFixed;
  at("voice").title = isFixed ? "For another voice, start a new conversation." : "";
}

// --- buttons and keys

function isMuted() {
  return at("mute").getAttribute("aria-pressed") === "true";
}

function mute() {
  at("mute").setAttribute("aria-pressed", String(!isMuted()));
  session?.setMuted(isMuted());
  if (document.body.dataset.state === "ready") state({ name: "ready" });
}

function save() {
  const record = { model: about.model, saved: new Date().toISOString(), turns: turns.record() };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 2)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

function colour() {
  document.documentElement.dataset.theme = at("theme").value;
  inputView.draw();
  outputView.draw();
}

at("start").addEventListener("click", () => (session ? end() : start()));
at("mute").addEventListener("click", mute);
at("hush").addEventListener("click", () => session?.hush());
at("again").addEventListener("click", again);
at("save").addEventListener("click", save);
at("think").addEventListener("change", () => session?.setThink(at("think").value));
at("voice").addEventListener("change", () => {
  if (session) again();
});
at("theme").addEventListener("change", colour);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") session?.hush();
  if (event.key.toLowerCase() === "m" && session) mute();
});
keep(at("theme"), "auto");
colour();
state({ name: "idle" });
begin().catch(() => say("The server cannot be reached. Load this page again when it runs."));
