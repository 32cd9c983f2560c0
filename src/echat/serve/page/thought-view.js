// A thought while it forms: labels as chips, the form in words as text.

const KINDS = [
  ["emotion", "feeling"],
  ["age", "age"],
  ["gender", "voice"],
  ["sound_event", "sound"],
  ["style", "style"],
  ["reply_emotion", "answer"],
];

export class ThoughtView {
  /** `replyEmotions`: what these labels are called; models write them in Chinese. */
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
    const heard = thought.transcript ? `I hear: “${thought.transcript}”` : "";
    this.words.textContent = isLabels ? heard : thought.text;
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
