// The page: what is looked at, what is being answered, and which key does what.

import { receive } from "./answer.js";
import { getJson } from "./api.js";
import { addMessage, newConversation, path, requestMessages, select, splitThought, toJson, toMarkdown }
  from "./conversation.js";
import { $, announce, download, el, toast } from "./dom.js";
import { EnginePicture } from "./engine.js";
import { buildKeys, composes, onKey } from "./keys.js";
import { errorText, Messages } from "./messages.js";
import { askForKey, buildSettings, openSettings } from "./settings.js";
import { openMenu, showList } from "./sidebar.js";
import { apiKey, deleteConversation, loadConversations, recall, remember, saveConversation, setApiKey, tabs }
  from "./store.js";
import { setLanguage, t, translate } from "./strings.js";

const SAVE_MS = 1_000; // between two savings of an answer that grows
const NARROW = matchMedia("(max-width: 46rem)");

let look = recall("look", { theme: "system", language: "system" });
let settings = recall("settings", {}); // what a new conversation begins with
let conversations = [];
let current = newConversation(settings);
let models = [];
let model = recall("model", { id: "" }).id;
const runs = new Map(); // conversation id -> { controller, message }

const messages = new Messages($("log"), $("scroll"), {
  edit: (message, text) => send(text, message.parent),
  regenerate: (message) => answer(current, message.parent),
  choose: (message) => { select(current, message); keep(current); show(); },
  enterKey: async (message) => {
    if (!await changeKey()) return;
    if (!models.length) loadModels();
    answer(current, message.parent);
  },
});

// --- what is looked at ---

function show() {
  const empty = !current.messages.length;
  $("title").value = current.title;
  $("title").disabled = $("more").hidden = empty;
  document.title = current.title ? `${current.title} · lowbit` : "lowbit";
  $("welcome").hidden = !empty;
  if (empty) showWelcome();
  messages.show(current);
  showAround();
}

// All but the messages.
function showAround() {
  const run = runs.get(current.id);
  $("stop").hidden = !run;
  $("send").hidden = Boolean(run);
  $("send").disabled = !$("prompt").value.trim();
  showList(conversations, current, (conversation) => runs.has(conversation.id), {
    open: (conversation) => { open(conversation); closeDrawer(); },
    menu: (conversation, anchor) => openMenu(anchor, (name) => act(name, conversation)),
  });
  engine.watch(runs.size > 0);
}

function open(conversation) {
  current = conversation;
  location.replace(conversation.messages.length ? `#${conversation.id}` : "#");
  show();
  messages.toEnd();
}

function begin() {
  open(newConversation(settings));
  closeDrawer();
  $("prompt").focus();
}

function showWelcome() {
  const stories = /lowbit-tiny|stories/i.test(model);
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const prompts = stories
    ? ["Tell me a story about a dragon and a cake.",
      "Tell me a story about a dog and a ball. It should have a happy end.",
      "Tell me a story about a bird and a boat."]
    : [t("suggestion1"), t("suggestion2"), t("suggestion3")];
  $("welcome").replaceChildren(
    el("h2", {}, t(stories ? "welcomeStories" : "welcome")),
    el("ul", { "aria-label": t("suggestions") }, ...prompts.map((prompt) =>
      el("li", {}, el("button", { type: "button", lang: stories ? "en" : undefined, onclick: () => send(prompt) },
        prompt)))),
    el("p", { class: "hint" }, (stories ? `${t("aboutStories", { model })} ` : "")
      + (local ? t("aboutLocal") : t("aboutRemote", { host: location.host }))));
}

function showModels() {
  const names = models.map(({ id }) => id);
  $("model").replaceChildren(names.length > 1
    ? el("select", { "aria-label": t("model"), onchange: (event) => {
      model = event.target.value;
      remember("model", { id: model });
    } }, ...names.map((id) => el("option", { value: id, selected: id === model }, id)))
    : el("span", { title: t("model") }, model));
}

async function loadModels() {
  try {
    models = (await getJson("v1/models")).data ?? [];
    if (!models.some(({ id }) => id === model)) model = models[0]?.id ?? "";
    showModels();
    if (!$("welcome").hidden) showWelcome();
  } catch (error) {
    if (error.kind === "key" && await changeKey()) await loadModels();
  }
}

// --- answers ---

// A message, and its answer; a message that has the same parent as another is a version of it.
function send(text, parent = current.leaf) {
  if (runs.has(current.id) || !text.trim()) return;
  const said = addMessage(current, parent, "user", text);
  if (!conversations.includes(current)) conversations.unshift(current);
  location.replace(`#${current.id}`);
  answer(current, said.id);
}

async function answer(conversation, parent) {
  if (runs.has(conversation.id)) return;
  const asked = requestMessages(conversation, parent);
  const message = addMessage(conversation, parent, "assistant", "");
  const controller = new AbortController();
  runs.set(conversation.id, { controller, message });
  conversations = [conversation, ...conversations.filter((other) => other !== conversation)];
  if (conversation === current) { show(); messages.toEnd(); $("prompt").focus({ preventScroll: true }); }
  announce(t("writing"));
  let saved = performance.now();
  keep(conversation);
  const { system, ...sampling } = conversation.settings;
  try {
    await receive(message, { ...(model && { model }), messages: asked, ...sampling }, controller.signal, () => {
      if (conversation === current) messages.grow(message);
      if (performance.now() - saved > SAVE_MS) {
        saved = performance.now();
        keep(conversation);
      }
    });
    message.state = "done";
  } catch (error) {
    message.state = error.name === "AbortError" ? "stopped" : "failed";
    if (message.state === "failed") {
      message.error = { kind: error.kind ?? "server", detail: error.detail ?? String(error), retryAfter: error.retryAfter };
    }
  }
  runs.delete(conversation.id);
  conversation.changed = Date.now();
  keep(conversation);
  if (conversation === current) messages.update(message);
  showAround();
  if (message.state === "done") announce(t("answered", { text: splitThought(message).answer }));
  if (message.state === "stopped") announce(t("stopped"));
  if (message.error?.kind === "key" && conversation === current) messages.actions.enterKey(message);
}

// Save it, unless it was deleted meanwhile.
async function keep(conversation) {
  if (conversations.includes(conversation) && !await saveConversation(conversation)) toast(t("notKept"));
}

const stop = (conversation = current) => runs.get(conversation.id)?.controller.abort();

// --- one conversation: its menu ---

function act(name, conversation) {
  const file = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";
  if (name === "rename") {
    open(conversation);
    closeDrawer();
    $("title").select();
  }
  if (name === "json") download(`${file}.json`, "application/json", toJson(conversation));
  if (name === "markdown") {
    download(`${file}.md`, "text/markdown",
      toMarkdown(conversation, { system: t("system"), user: t("you"), assistant: t("answerer") }));
  }
  if (name === "remove") {
    stop(conversation);
    conversations = conversations.filter((other) => other !== conversation);
    deleteConversation(conversation.id);
    if (conversation === current) begin(); else showAround();
    toast(t("removed", { title: conversation.title }), () => {
      conversations = [...conversations, conversation].sort((a, b) => b.changed - a.changed);
      keep(conversation);
      open(conversation);
    });
  }
}

function rename() {
  const title = $("title").value.trim();
  if (title) current.title = title;
  $("title").value = current.title;
  document.title = `${current.title} · lowbit`;
  keep(current);
  showAround();
}

function move(step) {
  const next = conversations[conversations.indexOf(current) + step];
  if (next) open(next);
}

// --- settings ---

async function changeKey() {
  if ($("ask-key").open) return false;
  const key = await askForKey();
  if (key === null) return false;
  setApiKey(key);
  engine.look();
  return true;
}

function wear() {
  document.documentElement.dataset.theme = look.theme;
  setLanguage(look.language);
  buildKeys();
  translate();
  showModels();
  engine.draw();
  show();
}

function settingsDialog() {
  openSettings(current.settings, look, apiKey(), (chosen, newLook, key) => {
    settings = chosen;
    current.settings = { ...chosen };
    remember("settings", settings);
    keep(current);
    if (newLook.theme !== look.theme || newLook.language !== look.language) {
      look = newLook;
      remember("look", look);
      wear();
    }
    if (key !== apiKey()) {
      setApiKey(key);
      loadModels();
    }
  });
}

// --- keyboard ---

const KEYS = {
  escape: () => {
    if (document.querySelector(":popover-open")) return false;
    if (runs.has(current.id)) stop(); else closeDrawer();
  },
  "ctrl+,": settingsDialog,
  "ctrl+/": () => $("help").showModal(),
  "ctrl+b": toggleList,
  "ctrl+shift+o": begin,
  "alt+arrowup": () => move(-1),
  "alt+arrowdown": () => move(1),
};

function onPromptKey(event) {
  if (composes(event)) return;
  if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.altKey) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
  if (event.key === "ArrowUp" && !event.altKey && !$("prompt").value && !runs.has(current.id)) {
    const last = path(current).findLast((message) => message.role === "user");
    if (last) { event.preventDefault(); messages.edit(last); }
  }
}

// --- the list on narrow screens lies over the page ---

function setList(shown) {
  document.body.classList.toggle(NARROW.matches ? "drawer" : "without-list", NARROW.matches ? shown : !shown);
  $("sidebar").inert = !shown;
  document.querySelector("main").inert = NARROW.matches && shown;
  $("open-list").hidden = shown && !NARROW.matches;
  $("open-list").setAttribute("aria-expanded", shown);
}

function toggleList() {
  const shown = !$("sidebar").inert;
  setList(!shown);
  (shown ? $("open-list") : $("close-list")).focus();
}

function closeDrawer() {
  if (NARROW.matches) setList(false);
}

// --- the beginning ---

const engine = new EnginePicture((gone) => {
  document.body.classList.toggle("gone", gone);
  if (gone) announce(errorText({ kind: "gone" }));
  else if (!models.length) loadModels();
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (runs.has(current.id) || !text.trim()) return;
  $("prompt").value = "";
  send(text);
});
$("prompt").addEventListener("input", () => { $("send").disabled = !$("prompt").value.trim(); });
$("prompt").addEventListener("keydown", onPromptKey);
$("stop").addEventListener("click", () => { stop(); $("prompt").focus(); });
$("new").addEventListener("click", begin);
$("to-end").addEventListener("click", () => messages.toEnd());
$("more").addEventListener("click", (event) => openMenu(event.currentTarget, (name) => act(name, current)));
$("open-list").addEventListener("click", toggleList);
$("close-list").addEventListener("click", toggleList);
$("shade").addEventListener("click", closeDrawer);
$("open-settings").addEventListener("click", settingsDialog);
$("open-help").addEventListener("click", () => $("help").showModal());
$("title").addEventListener("change", rename);
$("title").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Escape") { $("title").value = current.title; event.stopPropagation(); }
  if (event.key === "Enter" || event.key === "Escape") $("prompt").focus();
});
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.addEventListener("keydown", (event) => onKey(event, KEYS));
NARROW.addEventListener("change", () => {
  document.body.classList.remove("drawer", "without-list");
  setList(!NARROW.matches);
});
tabs?.addEventListener("message", readList);

// What is stored, by this tab or another; what this tab is writing stays as it is here.
async function readList() {
  const stored = await loadConversations();
  if (!stored) return toast(t("notKept"));
  const writing = conversations.filter(({ id }) => runs.has(id));
  const idle = stored.filter(({ id }) => !runs.has(id));
  conversations = [...writing, ...idle.map((other) =>
    other.id === current.id && other.changed <= current.changed ? current : other)]
    .sort((a, b) => b.changed - a.changed);
  for (const conversation of conversations) {
    if (runs.has(conversation.id)) continue;
    for (const message of conversation.messages) { // a tab was closed over it
      if (message.state === "writing") message.state = "stopped";
    }
  }
  const newer = conversations.find((other) => other.id === current.id && other !== current);
  if (newer) open(newer); else showAround();
}

buildSettings();
wear();
setList(!NARROW.matches);
loadModels();
engine.look();
readList().then(() => {
  const wanted = conversations.find(({ id }) => id === location.hash.slice(1));
  if (wanted && !current.messages.length) open(wanted);
});
if (!NARROW.matches) $("prompt").focus();
