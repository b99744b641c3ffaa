// What a model writes is made into elements here, and nowhere else. Three things stand between it and the page: markup
// in it is text, not markup; what marked makes of the rest goes through DOMPurify, whole, at each rendering, with a short
// list of what is let through; and the page's content security policy runs no script of anybody else.

import { Marked } from "./vendor/marked/marked.esm.js";
import "./vendor/dompurify/purify.min.js";
import { tokenizeWith } from "./vendor/speed-highlight/tokenize.js";
import { el, iconButton, copyText } from "./dom.js";
import { t } from "./strings.js";

const { DOMPurify } = globalThis;

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const marked = new Marked({
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    image({ href, text }) { // pictures are not loaded: whoever hosts one would learn of the conversation
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
  },
});

const LETS_THROUGH = {
  ALLOWED_TAGS: ["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "code", "pre", "blockquote",
    "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "a", "input"],
  ALLOWED_ATTR: ["href", "class", "start", "align", "type", "checked", "disabled"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["start", "align", "type"], // what they hold is no address
  RETURN_DOM_FRAGMENT: true,
};

const ALIASES = { javascript: "js", mjs: "js", jsx: "js", typescript: "ts", tsx: "ts", python: "py", sh: "bash",
  shell: "bash", zsh: "bash", console: "bash", "c++": "c", cpp: "c", h: "c", rust: "rs", golang: "go", yml: "yaml",
  jsonc: "json", dockerfile: "docker", makefile: "make", perl: "pl", markdown: "md", svg: "xml" };
const LONGEST_HIGHLIGHTED = 20_000; // characters: above this, colours cost more than they give

let languages = null; // loaded when the first block of code appears

function highlight(code, language) {
  const source = code.textContent;
  if (source.length > LONGEST_HIGHLIGHTED) return;
  if (languages === null) {
    languages = {};
    import("./vendor/speed-highlight/languages/index.js").then((all) => {
      languages = all;
      document.dispatchEvent(new Event("languages"));
    });
  }
  const grammar = languages[ALIASES[language] ?? language];
  if (!grammar) return;
  const pieces = [];
  tokenizeWith(source, grammar, (text, type) => pieces.push(type ? el("span", { class: `t-${type}` }, text) : text),
    { languages });
  code.replaceChildren(...pieces);
}

export function render(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), LETS_THROUGH);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const input of fragment.querySelectorAll("input")) { // those of task lists, and only to be looked at
    if (input.type === "checkbox") input.disabled = true;
    else input.remove();
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = el("div", { class: "table", tabindex: "0", role: "group", "aria-label": t("table") });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) {
    const language = /^language-(\S+)$/.exec(code.className)?.[1].toLowerCase() ?? "";
    const frame = el("div", { class: "code" });
    code.parentElement.replaceWith(frame);
    frame.append(
      el("div", { class: "code-head" }, el("span", {}, language), iconButton("copy", t("copyCode"), (event) =>
        copyText(event.currentTarget.closest(".code").querySelector("code").textContent))),
      el("pre", { tabindex: "0" }, code));
    code.removeAttribute("class");
    highlight(code, language);
  }
  return fragment;
}

// Puts in only the blocks that changed, so that a selection, and what is scrolled sideways, stays as it is.
export function renderInto(element, text) {
  const blocks = [...render(text).childNodes];
  blocks.forEach((block, i) => {
    const old = element.childNodes[i];
    if (!old) element.append(block);
    else if (!old.isEqualNode(block)) old.replaceWith(block);
  });
  while (element.childNodes.length > blocks.length) element.lastChild.remove();
}
