// A thought while it forms: labels as chips, the form in words as text.

const KINDS = [
  ["emotion", "feeling"],
  ["age", "age"],
  ["gender", "voice"],
  ["sound_event", "sound"],
  ["style", "style"],
  ["reply_emotion", "answers"],
];
// The labels of reply emotions are Chinese words in every model.
const REPLY_EMOTIONS = {
  愉悦: "cheerfully", 抱歉: "apologetically", 开心: "happily", 愤怒: "angrily", 惊讶: "with surprise",
  厌恶: "with disgust", 悲伤: "sadly", 害怕: "fearfully", 哭腔: "tearfully", 安慰鼓励: "with comfort",
  中立: "evenly",
};

export class ThoughtView {
  constructor() {
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
    this.chips.replaceChildren(...(isLabels ? KINDS.filter(([kind]) => thought[kind]).map((kind) => chip(kind, thought)) : []));
  }
}

function chip([kind, name], thought) {
  const value = String(thought[kind]);
  const item = element("li");
  item.dataset.kind = kind;
  item.append(element("span", "kind", `${name} `), REPLY_EMOTIONS[value] ?? value.replace("_", " "));
  return item;
}

export function element(name, classes = "", text = "") {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  return made;
}
