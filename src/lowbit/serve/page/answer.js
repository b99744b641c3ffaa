// One answer as it comes: its text, its thoughts, and how fast.

import { chat } from "./api.js";

// Fills the message, and calls `grown` after each piece. First token and speed are as they were seen here, and the
// speed is the engine's own where the server says it.
export async function receive(message, body, signal, grown) {
  const start = performance.now();
  let [pieces, first, last, counted] = [0, 0, 0, null];
  for await (const piece of chat(body, signal)) {
    message.model = piece.model ?? message.model;
    message.finish = piece.finish ?? message.finish;
    counted = piece.timings?.predicted_per_second ?? counted;
    if (piece.text || piece.thought) {
      last = performance.now();
      first ||= last;
      pieces += 1;
      message.text += piece.text;
      message.thought += piece.thought;
    }
    const tokens = piece.usage?.completion_tokens ?? Math.max(pieces, message.stats?.tokens ?? 0);
    const seen = last > first ? (tokens - 1) / (last - first) * 1000 : undefined;
    message.stats = { tokens, perSecond: counted ?? seen, first: first ? (first - start) / 1000 : undefined };
    grown();
  }
}
