// The page beside the panel. Scripts go in on a click only, and what they give back is checked like anything from a stranger.

import { LONGEST, list, text, whole } from "../lib/bounds.js";
import { state } from "./state.js";

const SCRIPTS = ["page/text.js", "page/words.js", "page/posting.js", "page/read.js", "page/fields.js"];
const AGAIN = "Click the tunesmith icon in the toolbar while the page is in front (or press Alt+Shift+L).";

const FORBIDDEN = /Cannot access|permission/i;
const GRANTED_MS = 3000; // the click's right reaches a busy page's process after its event reaches the panel

export class Unreadable extends Error {}

async function inPage(func, ...args) {
  if (state.tab === null) throw new Unreadable(`No page yet. ${AGAIN}`);
  const target = { tabId: state.tab };
  for (;;) {
    try {
      await chrome.scripting.executeScript({ target, files: SCRIPTS });
      const [{ result }] = await chrome.scripting.executeScript({ target, func, args });
      return result;
    } catch (error) {
      const said = String(error?.message ?? error);
      if (!FORBIDDEN.test(said) || Date.now() - state.clicked > GRANTED_MS) throw new Unreadable(explained(said));
      await new Promise((done) => setTimeout(done, 150));
    }
  }
}

function explained(said) {
  if (/No tab with id|was closed|was removed/i.test(said)) return `That page is closed. ${AGAIN}`;
  if (/chrome(-extension)?:\/\/|gallery|cannot be scripted|error page|webstore/i.test(said)) return "Chrome does not let extensions read this page. You can type or paste the advert instead.";
  if (FORBIDDEN.test(said)) return `The page has changed since you clicked the icon, and Chrome asks for a new click. ${AGAIN}`;
  return `The page could not be read. ${AGAIN}`;
}

// {found, adverts, notes, foreign}
export async function read() {
  const told = await inPage(() => globalThis.tunesmith.readWhenStill(document));
  const adverts = list(told?.adverts, 12).map((advert) => ({
    ...Object.fromEntries(["title", "company", "description", "requirements"].map((name) => [name, text(advert?.[name], LONGEST[name])])),
    from: ["JSON-LD", "microdata", "text", "selection"].includes(advert?.from) ? advert.from : "text",
    clipped: list(advert?.clipped, 4).map((name) => text(name, 20)),
  }));
  return { found: told?.found === true && adverts.length > 0, adverts, foreign: list(told?.foreign, 5).map((host) => text(host, 100)).filter(Boolean) };
}

// [{number, label, kind, holds, limit, frame}]
export async function fields() {
  const told = await inPage(() => globalThis.tunesmith.fields(document));
  return list(told, 40).filter((field) => whole(field?.number, 0, 40)).map((field) => ({
    number: field.number, label: text(field.label, 120), kind: ["line", "text", "editor"].includes(field.kind) ? field.kind : "text",
    holds: whole(field.holds, 0, 1e9) ? field.holds : 0, limit: whole(field.limit, 0, 1e9) ? field.limit : 0, frame: field.frame === true,
  }));
}

export async function show(number) {
  await inPage((wanted) => globalThis.tunesmith.show(wanted), number);
}

// {done, why, before}
export async function insert(number, letter) {
  const told = await inPage((wanted, words) => globalThis.tunesmith.insert(wanted, words), number, letter);
  return { done: told?.done === true, why: text(told?.why, 20), before: text(told?.before, 20_000) };
}
