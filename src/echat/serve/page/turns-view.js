// The conversation so far, as a list.

import { ThoughtView, element } from "./thought-view.js";

const NAMES = { user: "you", assistant: "echat" };

export class TurnsView {
  constructor(list, nothing) {
    this.list = list;
    this.nothing = nothing;
    this.turns = new Map();
    this.replyEmotions = {};
  }

  get isEmpty() {
    return this.turns.size === 0;
  }

  clear() {
    this.turns.clear();
    this.list.replaceChildren();
    this.nothing.hidden = false;
  }

  add(id, role) {
    if (this.turns.has(id)) return;
    const box = element("li", `turn ${role}`);
    const name = box.appendChild(element("div", "name", NAMES[role]));
    const words = element("p", "words");
    const turn = { id, role, box, name, words, note: null, thought: null, text: "", played: null };
    box.dataset.id = id;
    box.ariaBusy = "true"; // a screen reader waits for the complete text
    words.append(element("span", "forming", role === "user" ? "speaking" : ""));
    box.append(words);
    this.list.append(box);
    this.turns.set(id, turn);
    this.nothing.hidden = true;
    box.scrollIntoView({ block: "nearest" });
  }

  /** The transcript of a user turn. */
  transcript(id, text) {
    this.with(id, (turn) => {
      turn.text = text;
      turn.box.ariaBusy = "false";
      turn.words.replaceChildren(text || element("span", "note", "(no words were recognized)"));
    });
  }

  /** Text of an answer: the next piece, or all of it. */
  say(id, text, isWhole) {
    this.with(id, (turn) => {
      turn.text = isWhole ? text : turn.text + text;
      this.write(turn);
      turn.box.scrollIntoView({ block: "nearest" });
    });
  }

  think(id, { delta, labels, thought }) {
    this.with(id, (turn) => {
      if (!turn.thought) {
        turn.thought = new ThoughtView(this.replyEmotions);
        turn.name.after(turn.thought.element);
      }
      if (thought) turn.thought.finish(thought);
      else turn.thought.add(delta, labels);
      turn.record = thought ?? turn.record;
    });
  }

  answered(id, status, failure) {
    this.with(id, (turn) => {
      const notes = { cancelled: "interrupted", incomplete: "not finished", failed: failure ?? "no answer" };
      if (notes[status]) this.remark(turn, notes[status]);
      else if (!turn.text) this.remark(turn, "(no answer)");
      turn.box.ariaBusy = "false";
      this.write(turn);
    });
  }

  /** Only the first part of an answer was played. */
  cut(id, played) {
    this.with(id, (turn) => {
      turn.played = played.trim();
      this.remark(turn, "interrupted");
      this.write(turn);
    });
  }

  remark(turn, text) {
    turn.note ??= turn.name.appendChild(element("span", "note"));
    turn.note.textContent = text;
  }

  write(turn) {
    const isCut = turn.played !== null && turn.text.startsWith(turn.played);
    const played = isCut ? turn.played : turn.text;
    const rest = turn.text.slice(played.length);
    turn.words.replaceChildren(played, ...(rest ? [element("span", "unplayed", rest)] : []));
  }

  with(id, change) {
    const turn = this.turns.get(id);
    if (turn) change(turn);
  }

  /** The turns, answers as far as they were played, for a session that continues from here. */
  history() {
    const turns = [...this.turns.values()].map(({ role, text, played }) => ({ role, text: played ?? text }));
    return turns.filter(({ text }) => text);
  }

  /** The conversation for a file. */
  record() {
    return [...this.turns.values()].map(({ role, text, played, record }) => ({
      role,
      text,
      ...(played === null ? {} : { heard: played }), // `heard` is the name in the file
      ...(record ? { thought: record } : {}),
    }));
  }
}
