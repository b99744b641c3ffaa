// The messages of one conversation on the screen.

import { path, versions, splitThought } from "./conversation.js";
import { $, el, icon, iconButton, copyText } from "./dom.js";
import { composes } from "./keys.js";
import { renderInto } from "./markdown.js";
import { number, t } from "./strings.js";

const NEAR_END = 80; // pixels: whoever is that close to the end follows the text

const ERRORS = { gone: "errorGone", key: "errorKey", busy: "errorBusy", loading: "errorLoading", context: "errorContext",
  refused: "errorRefused", server: "errorServer", broken: "errorBroken" };

export function errorText({ kind, detail, retryAfter }) {
  if (kind === "busy" && retryAfter) return t("errorBusyFor", { n: number(retryAfter) });
  return t(ERRORS[kind] ?? "errorServer") + (detail && kind !== "key" && kind !== "busy" ? ` ${detail}` : "");
}

const seconds = (s) => s < 1 ? t("firstMs", { n: number(s * 1000, 2) }) : t("first", { n: number(s, 2) });

// actions: edit(message, text), regenerate(message), choose(message), enterKey(message)
export class Messages {
  constructor(root, scroller, actions) {
    Object.assign(this, { root, scroller, actions, parts: new Map(), conversation: null, next: 0, cost: 0 });
    scroller.addEventListener("scroll", () => this.showEnd(), { passive: true });
    new ResizeObserver(() => { if (this.follows) this.toEnd(); else this.showEnd(); }).observe(root);
    document.addEventListener("languages", () => path(this.conversation).forEach((message) => this.update(message)));
    this.follows = true;
  }

  show(conversation) {
    this.conversation = conversation;
    this.parts.clear();
    this.root.replaceChildren();
    for (const message of conversation ? path(conversation) : []) this.add(message);
  }

  add(message) {
    const body = el("div", { class: "body" });
    const article = el("article", { class: message.role, "data-id": message.id,
      "aria-label": message.role === "user" ? t("you") : message.model || t("answerer") }, body);
    const part = { article, body };
    if (message.role === "assistant") {
      part.thoughtText = el("div", { class: "prose" });
      part.thoughtTitle = el("span");
      part.thought = el("details", { class: "thought", hidden: true }, el("summary", {}, part.thoughtTitle),
        part.thoughtText);
      part.text = el("div", { class: "prose" });
      part.wait = el("p", { class: "wait", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
      part.notes = el("div");
      body.append(part.thought, part.text, part.wait, part.notes);
    }
    part.foot = el("footer");
    article.append(part.foot);
    this.parts.set(message.id, part);
    this.root.append(article);
    this.update(message);
  }

  // An answer that grows is drawn once per frame, and more seldom where drawing takes long.
  grow(message) {
    if (this.next) return;
    const draw = () => {
      const start = performance.now();
      this.next = 0;
      this.update(message);
      this.cost = performance.now() - start;
    };
    this.next = this.cost > 8 ? setTimeout(draw, 4 * this.cost) : requestAnimationFrame(draw);
  }

  update(message) {
    const part = this.parts.get(message.id);
    if (!part || part.article.classList.contains("editing")) return;
    if (message.role === "user") {
      part.body.replaceChildren(el("div", { class: "said" }, message.text));
    } else {
      const { thought, answer, thinking } = splitThought(message);
      const writing = message.state === "writing";
      part.article.setAttribute("aria-busy", writing);
      part.article.classList.toggle("writing", writing && Boolean(answer));
      part.thought.hidden = !thought;
      part.thoughtTitle.textContent = t(thinking && writing ? "thinking" : "thought");
      part.thought.classList.toggle("active", thinking && writing);
      renderInto(part.thoughtText, thought);
      renderInto(part.text, answer);
      part.wait.hidden = !writing || Boolean(answer) || Boolean(thought);
      part.notes.replaceChildren(...this.notes(message));
    }
    if (message.state !== "writing") part.foot.replaceChildren(...this.foot(message));
  }

  notes(message) {
    if (message.state !== "failed") return [];
    const { error } = message;
    const again = error.kind === "key"
      ? el("button", { type: "button", onclick: () => this.actions.enterKey(message) }, t("enterKey"))
      : el("button", { type: "button", onclick: () => this.actions.regenerate(message) }, t("retry"));
    return [el("div", { class: "error", role: "alert" }, icon("alert"), el("p", {}, errorText(error)), again)];
  }

  foot(message) {
    const buttons = [];
    const all = versions(this.conversation, message);
    if (all.length > 1) {
      const at = all.indexOf(message);
      buttons.push(el("span", { class: "versions" },
        iconButton("previous", t("previousVersion"), () => this.actions.choose(all[at - 1]), { disabled: at === 0 }),
        el("span", { role: "img", "aria-label": t("versionOf", { n: at + 1, all: all.length }) },
          `${at + 1}/${all.length}`),
        iconButton("next", t("nextVersion"), () => this.actions.choose(all[at + 1]),
          { disabled: at === all.length - 1 })));
    }
    const text = message.role === "user" ? message.text : splitThought(message).answer;
    if (text) buttons.push(iconButton("copy", t("copy"), () => copyText(text)));
    if (message.role === "user") {
      buttons.push(iconButton("edit", t("edit"), () => this.edit(message), { "data-do": "edit" }));
      return buttons;
    }
    buttons.push(iconButton("again", t("regenerate"), () => this.actions.regenerate(message), { "data-do": "again" }));
    return [...buttons, el("span", { class: "stats" }, this.stats(message))];
  }

  stats({ stats, state, finish }) {
    const says = [];
    if (state === "stopped") says.push(t("stopped"));
    if (finish === "length") says.push(t("atLimit"));
    if (stats?.perSecond) says.push(t("speed", { n: number(stats.perSecond) }));
    if (stats?.first !== undefined) says.push(seconds(stats.first));
    if (stats?.tokens) says.push(t("tokens", { n: number(stats.tokens, 6) }));
    return says.join(" · ");
  }

  // A message that was sent becomes a box to write in; what comes of it is a version of its own.
  edit(message) {
    const { body, foot, article } = this.parts.get(message.id);
    const area = el("textarea", { rows: 1, "aria-label": t("edit") });
    area.value = message.text;
    const leave = () => { article.classList.remove("editing"); this.update(message); };
    const save = () => { if (area.value.trim()) this.actions.edit(message, area.value); };
    area.addEventListener("keydown", (event) => {
      if (composes(event)) return;
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); save(); }
      if (event.key === "Escape") { event.stopPropagation(); leave(); $("prompt").focus(); }
    });
    article.classList.add("editing");
    body.replaceChildren(area);
    foot.replaceChildren(el("button", { type: "button", class: "link", onclick: leave }, t("cancel")),
      el("button", { type: "button", class: "primary", onclick: save }, t("saveEdit")));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  toEnd() {
    this.follows = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.showEnd();
  }

  showEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
    $("to-end").hidden = this.follows;
  }
}
