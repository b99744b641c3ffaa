// Conversations live in the browser's IndexedDB, one record each; small choices in localStorage. Where a browser keeps
// neither, as some private windows do, everything works until the tab is closed.

let database = null;

const finished = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function table(mode) {
  database ??= (() => {
    const request = indexedDB.open("lowbit", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    return finished(request);
  })();
  return (await database).transaction("conversations", mode).objectStore("conversations");
}

export const tabs = typeof BroadcastChannel === "function" ? new BroadcastChannel("lowbit") : null;

// The latest first; null if the browser keeps nothing.
export async function loadConversations() {
  try {
    const all = await finished((await table("readonly")).getAll());
    return all.sort((a, b) => b.changed - a.changed);
  } catch {
    return null;
  }
}

async function write(what) {
  try {
    await finished(what(await table("readwrite")));
    tabs?.postMessage("changed");
    return true;
  } catch {
    return false;
  }
}

export const saveConversation = (conversation) => write((all) => all.put(conversation));
export const deleteConversation = (id) => write((all) => all.delete(id));

export function recall(name, otherwise) {
  try {
    return { ...otherwise, ...JSON.parse(localStorage.getItem(`lowbit.${name}`)) };
  } catch {
    return { ...otherwise };
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`lowbit.${name}`, JSON.stringify(value));
  } catch { /* then it is forgotten with the tab */ }
}

// The key is kept as long as the tab, and no longer.
let key = "";

export function apiKey() {
  try {
    return sessionStorage.getItem("lowbit.key") ?? key;
  } catch {
    return key;
  }
}

export function setApiKey(value) {
  key = value;
  try {
    sessionStorage.setItem("lowbit.key", value);
  } catch { /* kept above */ }
}
