// A conversation: plain data, as it is stored. Its messages are a tree, because editing a message or asking for another
// answer adds a branch and loses nothing; `leaf` says which branch is looked at.
//
// message: { id, parent, role: "user" | "assistant", text, thought, state, error, finish, model, stats, created }
// state of an answer: "writing", "done", "stopped", "failed"

const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 10);

export const newConversation = (settings) => ({
  id: newId(), title: "", created: Date.now(), changed: Date.now(), settings: { ...settings }, messages: [], leaf: null,
});

export function addMessage(conversation, parent, role, text) {
  const message = { id: newId(), parent, role, text, thought: "", state: role === "user" ? "done" : "writing",
    created: Date.now() };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.changed = Date.now();
  if (!conversation.title) conversation.title = text.trim().replace(/\s+/g, " ").slice(0, 80);
  return message;
}

// The messages from the first to the leaf that is looked at.
export function path(conversation, leaf = conversation.leaf) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const found = [];
  for (let message = byId.get(leaf); message; message = byId.get(message.parent)) found.unshift(message);
  return found;
}

// The versions of a message, in the order in which they came.
export const versions = (conversation, message) =>
  conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);

// Look at the branch of a message, down to what was said there last.
export function select(conversation, message) {
  let leaf = message;
  for (;;) {
    const next = conversation.messages.findLast((other) => other.parent === leaf.id);
    if (!next) break;
    leaf = next;
  }
  conversation.leaf = leaf.id;
}

// What the server is told. Messages of one role in a row, as after an answer that failed, become one: many templates
// want the roles to alternate.
export function requestMessages(conversation, leaf) {
  const said = conversation.settings.system?.trim() ? [{ role: "system", content: conversation.settings.system }] : [];
  for (const message of path(conversation, leaf)) {
    const content = message.role === "assistant" ? splitThought(message).answer : message.text;
    const last = said.at(-1);
    if (!content.trim()) continue;
    if (last?.role === message.role) last.content += `\n\n${content}`;
    else said.push({ role: message.role, content });
  }
  return said;
}

// Thoughts come beside the answer (`reasoning_content`) or in it, between <think> and </think>. Some templates write the
// first of these marks themselves, so that only the second one is in the text.
export function splitThought({ text, thought = "" }) {
  const inside = /^\s*(?:<think>)?((?:(?!<think>)[^])*?)<\/think>([^]*)$/.exec(text);
  if (inside) return { thought: (thought + inside[1]).trim(), answer: inside[2].trimStart(), thinking: false };
  const open = /^\s*<think>([^]*)$/.exec(text);
  if (open) return { thought: (thought + open[1].replace(/<(?:\/(?:t(?:h(?:i(?:nk?)?)?)?)?)?$/, "")).trim(), answer: "", thinking: true };
  if (text.trim() && "<think>".startsWith(text.trim())) return { thought, answer: "", thinking: true };
  return { thought: thought.trim(), answer: text, thinking: Boolean(thought) && !text };
}

export const toJson = (conversation) => JSON.stringify({
  title: conversation.title,
  created: new Date(conversation.created).toISOString(),
  settings: conversation.settings,
  messages: path(conversation).map((message) => {
    if (message.role === "user") return { role: "user", content: message.text };
    const { thought, answer } = splitThought(message);
    return { role: "assistant", content: answer, ...(thought && { reasoning_content: thought }), model: message.model,
      finish_reason: message.finish, stats: message.stats };
  }),
}, null, 2) + "\n";

export function toMarkdown(conversation, names) {
  const parts = [`# ${conversation.title}`];
  if (conversation.settings.system) parts.push(`## ${names.system}`, conversation.settings.system);
  for (const message of path(conversation)) {
    parts.push(`## ${names[message.role]}`, message.role === "user" ? message.text : splitThought(message).answer);
  }
  return parts.join("\n\n") + "\n";
}
