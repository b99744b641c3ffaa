// The few lines that build elements.

import { t } from "./strings.js";

export const $ = (id) => document.getElementById(id);

// el("button", { class: "quiet", onclick: f, "aria-label": "Copy" }, "text", child)
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A picture of the sheet of icons at the end of index.html.
export const icon = (name) => svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

export const iconButton = (name, label, onclick, properties = {}) =>
  el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties },
    icon(name));

// Read by screen readers, seen by nobody.
export function announce(text) {
  $("announcer").textContent = text;
}

let timer = 0;

// A line at the bottom that goes by itself; `undo`, if there is something to be taken back.
export function toast(text, undo = null) {
  const box = $("toast");
  clearTimeout(timer);
  box.replaceChildren(el("span", {}, text));
  if (undo) {
    box.append(el("button", { type: "button", onclick: () => { box.hidden = true; undo(); } }, t("undo")));
  }
  box.hidden = false;
  timer = setTimeout(() => { box.hidden = true; }, undo ? 10_000 : 3_000);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure context, as in a local network: the old way
    const area = el("textarea", { class: "unseen", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t("copied"));
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1_000);
}
