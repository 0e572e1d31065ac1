// Asking the tunesmith server on this computer, and no other. What goes wrong is a Trouble: a kind and a sentence to show.

import { text } from "./bounds.js";
import { events } from "./stream.js";

const PATIENCE_MS = 10_000;
const SILENCE_MS = 180_000; // a slow computer reads a long advert before its first word
const LONGEST_ANSWER = 2_000_000; // characters
const START = "Start it in a terminal: tunesmith serve YOUR-RUN";

export class Trouble extends Error {
  constructor(kind, message, wait = 0) {
    super(message);
    this.kind = kind; // offline, loading, unpaired, busy, refused, broken
    this.wait = wait; // seconds, of busy
  }
}

// The address as it is used, or a Trouble: only this computer's own will do.
export function loopback(address) {
  let read = null;
  try {
    read = new URL(/^[a-z]+:\/\//i.test(address.trim()) ? address.trim() : `http://${address.trim()}`);
  } catch {
    throw new Trouble("refused", "This is not an address. An address looks like http://127.0.0.1:8765.");
  }
  if (read.protocol !== "http:" || !["127.0.0.1", "localhost"].includes(read.hostname)) {
    throw new Trouble("refused", "Only a server on this computer is allowed: http://127.0.0.1 or http://localhost, with a port.");
  }
  if (read.username || read.password || read.search || read.hash || read.pathname !== "/") {
    throw new Trouble("refused", "The address has only a host and a port, such as http://127.0.0.1:8765.");
  }
  return read.origin;
}

async function ask(server, path, { body, signal, patience = PATIENCE_MS } = {}) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), patience);
  let answer = null;
  try {
    answer = await fetch(loopback(server.address) + path, {
      method: body ? "POST" : "GET",
      headers: { ...(server.token && { Authorization: `Bearer ${server.token}` }), ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
      signal: signal ? AbortSignal.any([signal, limit.signal]) : limit.signal,
    });
  } catch (error) {
    if (error instanceof Trouble || signal?.aborted) throw error;
    throw new Trouble("offline", `No tunesmith server answers at ${server.address}. ${START}`);
  } finally {
    clearTimeout(timer);
  }
  if (!answer.ok) throw await refusal(answer, server);
  return answer;
}

async function refusal(answer, server) {
  const said = await message(answer);
  const { status } = answer;
  if (status === 401) return new Trouble("unpaired", server.token ? "The server no longer knows this browser: its token was revoked or is another server's. Pair again." : "This browser is not paired with the server yet.");
  if (status === 403) return new Trouble("unpaired", "This extension is not paired with the server. Pair it in the settings.");
  if (status === 429) return new Trouble("busy", "The server is busy with other letters.", seconds(answer.headers.get("Retry-After")));
  if (status === 503) return new Trouble("loading", said || "The server is still loading its model. Try again in a moment.");
  if (status === 404) return new Trouble("refused", said || `The server at ${server.address} does not have this. Is it a tunesmith server?`);
  return new Trouble("refused", said || `The request failed (${status}).`);
}

function seconds(header) {
  const date = Date.parse(header ?? "");
  const found = /^\d+$/.test(header ?? "") ? Number(header) : Number.isNaN(date) ? 5 : (date - Date.now()) / 1000;
  return Math.min(600, Math.max(1, Math.ceil(found)));
}

async function message(answer) {
  try {
    return text(JSON.parse(await bounded(answer)).error?.message, 1000);
  } catch {
    return "";
  }
}

async function bounded(answer) {
  let found = "";
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    found += piece;
    if (found.length > LONGEST_ANSWER) throw new Trouble("refused", "The server's answer is too long.");
  }
  return found;
}

async function json(answer) {
  try {
    return JSON.parse(await bounded(answer));
  } catch (error) {
    throw error instanceof Trouble ? error : new Trouble("refused", "The server's answer is not what this extension reads. Is it a tunesmith server of the same version?");
  }
}

// "ok", "loading" or "down".
export async function health(server) {
  const told = await json(await ask({ ...server, token: "" }, "/health"));
  return ["ok", "loading"].includes(told.status) ? told.status : "down";
}

// The token of this browser for the code that the terminal shows.
export async function pair(address, code) {
  const told = await json(await ask({ address, token: "" }, "/v1/pair", { body: { code, name: "Chrome" } }).catch((error) => {
    if (error.kind === "unpaired") throw new Trouble("refused", "The code is wrong, used or older than ten minutes. Ask the server for a new one: tunesmith serve … --pair");
    throw error;
  }));
  const token = text(told.token, 500);
  if (!token) throw new Trouble("refused", "The server gave no token.");
  return token;
}

export async function recipes(server) {
  const told = await json(await ask(server, "/v1/recipes"));
  return (Array.isArray(told.data) ? told.data : []).slice(0, 50)
    .map((each) => ({ name: text(each?.name, 100), about: text(each?.about, 500) })).filter((each) => each.name);
}

// {name, about, model, system, fields: [{name, label, help, kind, required, longest}]}
export async function recipe(server, name) {
  const told = await json(await ask(server, `/v1/recipes/${encodeURIComponent(name)}`));
  const fields = (Array.isArray(told.fields) ? told.fields : []).slice(0, 40).map((field) => ({
    name: text(field?.name, 100), label: text(field?.label, 100) || text(field?.name, 100), help: text(field?.help, 500),
    kind: field?.kind === "lines" ? "lines" : "text", required: field?.required === true,
    longest: Number.isInteger(field?.longest) && field.longest > 0 ? field.longest : 4000,
  })).filter((field) => field.name);
  if (!fields.length) throw new Trouble("refused", `The recipe ${name} has no fields to fill.`);
  return { name: text(told.name, 100), about: text(told.about, 500), model: text(told.model, 200), system: text(told.system, 8000), fields };
}

// The letter's events as they come; see stream.js. Ends with one `done`, or a Trouble.
export async function* write(server, name, asked, signal) {
  const silence = new AbortController();
  let timer = 0;
  const alive = () => { clearTimeout(timer); timer = setTimeout(() => silence.abort(), SILENCE_MS); };
  const both = AbortSignal.any([signal, silence.signal]);
  try {
    alive();
    const answer = await ask(server, `/v1/recipes/${encodeURIComponent(name)}/write`, { body: { ...asked, stream: true }, signal: both, patience: SILENCE_MS });
    if (!/^text\/event-stream\b/.test(answer.headers.get("Content-Type") ?? "")) throw new Trouble("refused", "The server did not answer with a stream.");
    for await (const event of events(answer.body)) {
      alive();
      if (event.name === "error") throw new Trouble("broken", event.message || "The server stopped with an error.");
      yield event;
      if (event.name === "done") return;
    }
    throw new Trouble("broken", "The letter is incomplete: the server ended the connection.");
  } catch (error) {
    if (error instanceof Trouble || signal.aborted) throw error;
    if (silence.signal.aborted) throw new Trouble("broken", `The server has sent nothing for ${SILENCE_MS / 60_000} minutes.`);
    throw new Trouble("broken", "The letter is incomplete: the connection to the server was lost.");
  } finally {
    clearTimeout(timer);
  }
}
