// Shows the latencies that a stopwatch measured.

const MARKS = [
  ["sound", "first audio after your turn"],
  ["thought", "first of the thought"],
  ["words", "first words"],
];
const STAGES = [
  ["listen", "server: audio encoding"],
  ["read", "server: prefill"],
  ["write", "server: text generation"],
  ["speak", "server: speech tokens"],
  ["synthesise", "server: synthesis"],
];

export function showLatency(section, { marks, gaps, seconds }) {
  const rows = [
    ...MARKS.filter(([name]) => name in marks).map(([name, words]) => [words, marks[name], name === "sound"]),
    ...STAGES.filter(([name]) => name in seconds).map(([name, words]) => [words, seconds[name], false]),
    ...(gaps.length ? [["silent gaps", gaps.reduce((sum, one) => sum + one, 0), false]] : []),
  ];
  section.hidden = rows.length === 0;
  section.querySelector("dl").replaceChildren(...rows.flatMap(row));
}

function row([words, seconds, isFirst]) {
  const term = document.createElement("dt");
  const value = document.createElement("dd");
  term.textContent = words;
  value.textContent = `${seconds.toFixed(2)} s`;
  term.classList.toggle("first", isFirst);
  value.classList.toggle("first", isFirst);
  return [term, value];
}
