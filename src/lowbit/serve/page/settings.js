// The dialog of settings: fields of the conversation, and of the page.

import { $, el } from "./dom.js";
import { strings, t } from "./strings.js";

// Names of the fields as the server has them, and what each may hold.
export const SAMPLING = {
  temperature: { label: "temperature", min: 0, step: 0.05, max: 10 },
  top_p: { label: "topP", min: 0, max: 1, step: 0.01 },
  top_k: { label: "topK", min: 0, step: 1 },
  min_p: { label: "minP", min: 0, max: 1, step: 0.01 },
  max_tokens: { label: "maxTokens", min: 1, step: 1 },
  seed: { label: "seed", min: 0, step: 1 },
};

const form = () => $("settings").querySelector("form");

export function buildSettings() {
  $("sampling").replaceChildren(...Object.entries(SAMPLING).map(([name, { label, min, max, step }]) =>
    el("label", {}, el("span", { "data-t": label }),
      el("input", { name, type: "number", min, max, step: Number.isInteger(step) ? step : "any", inputmode: "decimal",
        "data-t-placeholder": "serverDefault", "aria-describedby": `hint-${name}` }),
      el("small", { id: `hint-${name}`, "data-t": `${label}Hint` }))));
}

// Calls `changed(settings, look, key)` at every change of something that is valid.
export function openSettings(settings, look, key, changed) {
  const fields = form().elements;
  fields.system.value = settings.system ?? "";
  for (const name of Object.keys(SAMPLING)) fields[name].value = settings[name] ?? "";
  fields.theme.value = look.theme;
  fields.language.replaceChildren(el("option", { value: "system" }, t("languageSystem")),
    ...Object.entries(strings).map(([name, { languageName }]) => el("option", { value: name }, languageName)));
  fields.language.value = look.language;
  fields.key.value = key;
  const tell = () => changed(read(fields), { theme: fields.theme.value, language: fields.language.value },
    fields.key.value.trim());
  form().onchange = tell;
  $("reset").onclick = () => {
    for (const name of ["system", ...Object.keys(SAMPLING)]) fields[name].value = "";
    tell();
  };
  $("settings").showModal();
}

function read(fields) {
  const settings = {};
  if (fields.system.value.trim()) settings.system = fields.system.value;
  for (const name of Object.keys(SAMPLING)) {
    if (fields[name].value !== "" && fields[name].validity.valid) settings[name] = fields[name].valueAsNumber;
  }
  return settings;
}

// Resolves to the key, or to null if there is to be none.
export function askForKey() {
  const dialog = $("ask-key");
  const field = dialog.querySelector("input");
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? field.value.trim() : null),
      { once: true });
  });
}
