// Keys that count wherever the focus is, and the list of all.

import { $, el } from "./dom.js";
import { t } from "./strings.js";

const LIST = [
  ["keySend", "Enter"], ["keyLine", "Shift", "Enter"], ["keyStop", "Esc"], ["keyEdit", "↑"],
  ["keyNew", "Ctrl", "Shift", "O"], ["keyMove", "Alt", "↑ ↓"], ["keyList", "Ctrl", "B"], ["keySettings", "Ctrl", ","],
  ["keyHelp", "Ctrl", "/"],
];

export function buildKeys() {
  $("keys").replaceChildren(...LIST.map(([says, ...keys]) =>
    el("div", {}, el("dt", {}, t(says)), el("dd", {}, ...keys.map((key) => el("kbd", {}, key))))));
}

// `actions` by the name of the key, as in "ctrl+shift+o"; one that returns false leaves the key to the browser. On a
// Mac, Command is as good as Ctrl. A ? is the list's key where nobody writes.
export function onKey(event, actions) {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const writes = event.target.matches("input, textarea, select");
  const command = (event.ctrlKey || event.metaKey) && !event.altKey;
  const name = [command && "ctrl", event.altKey && "alt", event.shiftKey && command && "shift",
    event.key.toLowerCase()].filter(Boolean).join("+");
  const action = actions[name === "?" && !writes ? "ctrl+/" : name];
  if (action && action() !== false) event.preventDefault();
}

// Enter that ends a word of an input method is not Enter; old browsers say so by the code 229 only.
export const composes = (event) => event.isComposing || event.keyCode === 229;
