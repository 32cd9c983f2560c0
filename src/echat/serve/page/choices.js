// Choices of the user, stored in the browser; the key only as long as the tab is open.

const PREFIX = "echat.";

function storeOf(name) {
  return name === "key" ? sessionStorage : localStorage;
}

/** Restore a field's stored value, and store its changes. */
export function keep(field, fallback) {
  const store = storeOf(field.id);
  field.value = store.getItem(PREFIX + field.id) ?? fallback;
  if (field.value === "" && fallback) field.value = fallback; // the stored choice is no longer offered
  field.addEventListener("change", () => store.setItem(PREFIX + field.id, field.value));
}
