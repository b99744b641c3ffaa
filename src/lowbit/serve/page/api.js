// Talks to the server that sent this page.

import { apiKey } from "./store.js";

// Below whatever prefix the page itself was found.
const url = (name) => new URL(name, document.baseURI);

// kind: "gone", "key", "busy", "loading", "context", "refused", "server", "broken"
export class ServerError extends Error {
  constructor(kind, detail = "", retryAfter = null) {
    super(detail || kind);
    Object.assign(this, { kind, detail, retryAfter });
  }
}

function errorOf(status, body, headers) {
  const error = body?.error ?? body;
  const detail = typeof error === "string" ? error : error?.message ?? "";
  const code = `${error?.code ?? ""} ${error?.type ?? ""}`;
  if (status === 401) return new ServerError("key", detail);
  if (status === 429) return new ServerError("busy", detail, Number(headers?.get("retry-after")) || null);
  if (status === 503) return new ServerError("loading", detail);
  if (/context/i.test(code)) return new ServerError("context", detail);
  return new ServerError(status < 500 ? "refused" : "server", detail);
}

async function request(name, { json, signal } = {}) {
  const key = apiKey();
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(json && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(url(name), {
      method: json ? "POST" : "GET", headers, signal, body: json && JSON.stringify(json), cache: "no-store",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError("gone");
  }
  if (!response.ok) throw errorOf(response.status, await response.json().catch(() => null), response.headers);
  return response;
}

export const getJson = async (name, signal) => (await request(name, { signal })).json();
export const getText = async (name, signal) => (await request(name, { signal })).text();

// The data of server-sent events. A chunk may end anywhere: within a character, a line end, an event.
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(/\r\n|\n|\r(?=[^])/); // a last \r may be the half of \r\n
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Yields { text, thought, finish, usage, timings, model }, each where it is there.
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {
    json: { ...body, stream: true, stream_options: { include_usage: true } }, signal,
  });
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") { // and on to the end: leaving now would look like a disconnect
        finished = true;
        continue;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorOf(chunk.error.code >= 400 ? chunk.error.code : 500, chunk, null);
      const choice = chunk.choices?.[0];
      finished ||= Boolean(choice?.finish_reason);
      yield {
        text: choice?.delta?.content ?? "",
        thought: choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "",
        finish: choice?.finish_reason, usage: chunk.usage, timings: chunk.timings, model: chunk.model,
      };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError("broken");
  }
  if (!finished) throw new ServerError("broken");
}
