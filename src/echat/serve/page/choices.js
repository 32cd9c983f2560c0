// What the user has chosen: kept in the browser, the key for as long as the tab is open.

const PREFIX = "echat.";

export function remember(name, value) {
  storeOf(name).setItem(PREFIX + name, value);
}

export function remembered(name, fallback = "") {
  return storeOf(name).getItem(PREFIX + name) ?? fallback;
}

function storeOf(name) {
  return name === "key" ? sessionStorage : localStorage;
}

/** Keep a field's value, and give it back what it had. */
export function keep(field, fallback) {
  field.value = remembered(field.id, fallback);
  if (field.value === "" && fallback) field.value = fallback; // what was kept is no longer offered
  field.addEventListener("change", () => remember(field.id, field.value));
}
