// Server-sent events of a letter, each checked. What this page does not know is passed over; what is malformed ends it.

import { LONGEST, list, text, whole } from "./bounds.js";

const LONGEST_EVENT = 1_000_000; // characters
const VERDICTS = ["supported", "contradicted", "unsupported"];

export async function* events(body) {
  let rest = "";
  for await (const piece of body.pipeThrough(new TextDecoderStream())) {
    rest = (rest + piece).replace(/\r\n|\r(?!$)/g, "\n");
    if (rest.length > LONGEST_EVENT) throw new Error("an event is too long");
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const found = event(rest.slice(0, end));
      rest = rest.slice(end + 2);
      if (found) yield found;
    }
  }
}

function event(block) {
  let name = "";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? checked(name, JSON.parse(data.join("\n"))) : null;
}

// {name: "text", text} | {name: "claim", …} | {name: "cut", why, removed} | {name: "done", text, claims, …} |
// {name: "error", message}; null for names that are not known.
export function checked(name, data) {
  if (name === "text") return { name, text: text(data.text, LONGEST.letter) };
  if (name === "claim") return claim(data);
  if (name === "cut") return { name, why: text(data.why, 500), removed: text(data.removed, LONGEST.letter) };
  if (name === "error") return { name, message: text(data.message, 1000) };
  if (name !== "done") return null;
  return { name, text: text(data.text, LONGEST.letter), claims: list(data.claims, 500).map(claim).filter(Boolean), stopped: data.stopped === true, cut: Boolean(data.cut), seconds: Number(data.seconds) || 0 };
}

function claim(data) {
  if (!VERDICTS.includes(data?.verdict) || !whole(data.start, 0, LONGEST.letter) || !whole(data.end, data.start + 1, LONGEST.letter)) return null;
  return { name: "claim", start: data.start, end: data.end, text: text(data.text, 2000), kind: text(data.kind, 100), verdict: data.verdict, why: text(data.why, 1000), field: text(data.field, 200) };
}
