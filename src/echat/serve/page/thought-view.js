// A thought while it is generated: labels as chips, a language thought as text.

const KINDS = [
  ["emotion", "feeling"],
  ["age", "age"],
  ["gender", "voice"],
  ["sound_event", "sound"],
  ["style", "style"],
  ["reply_emotion", "answer"],
];

export class ThoughtView {
  /** `replyEmotions`: English names of these labels; models write them in Chinese. */
  constructor(replyEmotions) {
    this.replyEmotions = replyEmotions;
    this.element = element("div", "thought");
    this.element.append(element("span", "name", "thought"));
    this.words = this.element.appendChild(element("p", "words forming"));
    this.chips = this.element.appendChild(element("ul", "chips"));
    this.text = "";
  }

  /** The next piece: text, and the labels known so far (none in the other form). */
  add(delta, labels) {
    this.text += delta;
    if (labels) this.show({ form: "label", ...labels });
    else this.words.textContent = this.text;
  }

  /** The whole thought. */
  finish(thought) {
    this.show(thought);
    this.words.classList.remove("forming");
  }

  show(thought) {
    const isLabels = thought.form === "label";
    const transcript = thought.transcript ? `Transcript: “${thought.transcript}”` : "";
    this.words.textContent = isLabels ? transcript : thought.text;
    const known = isLabels ? KINDS.filter(([kind]) => thought[kind]) : [];
    this.chips.replaceChildren(...known.map(([kind, name]) => this.chip(kind, name, thought[kind])));
  }

  chip(kind, name, value) {
    const item = element("li");
    item.dataset.kind = kind;
    item.append(element("span", "kind", `${name} `), this.replyEmotions[value] ?? value.replace("_", " "));
    return item;
  }
}

export function element(name, classes = "", text = "") {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  return made;
}
