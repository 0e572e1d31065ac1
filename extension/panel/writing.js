// A letter as it is written: its text, the marks in it, the list of reasons, and the sentences that are taken out.

import { LONGEST } from "../lib/bounds.js";
import { at, count, make, tell } from "../lib/dom.js";
import { marked, sentence, shifted } from "../lib/letter.js";
import { Trouble, write } from "../lib/server.js";
import { system, values } from "./sent.js";
import { state } from "./state.js";
import { calm, trouble } from "./trouble.js";

const WORDS = { contradicted: "Contradicted", unsupported: "Unsupported" };
const AROUND = 40; // characters shown before and behind a claim
const removed = []; // {letter, claims} before each sentence that was taken out
let heard = 0; // how much of the letter the live region has said
let saved = () => {};
let refused = () => {};

export function setUp(save, unpaired) {
  [saved, refused] = [save, unpaired];
  at("write").onclick = start;
  at("stop").onclick = () => state.writing?.abort();
  at("back").onclick = putBack;
  at("letter").addEventListener("input", edited);
  document.addEventListener("selectionchange", look);
}

export async function start() {
  if (state.writing || !state.recipe) return;
  const fields = values();
  if (!fields) {
    tell(at("progress"), "A required field above is empty.");
    return;
  }
  calm(false);
  begin();
  let ended = "";
  try {
    for await (const event of write(state.kept.server, state.recipe.name, { fields, system: system(), max_tokens: null, temperature: null, seed: null }, state.writing.signal)) {
      ended = took(event) || ended;
    }
  } catch (error) {
    if (state.writing.signal.aborted) {
      ended = "Stopped. What was written so far is kept.";
    } else {
      if (!(error instanceof Trouble)) throw error;
      ended = state.letter ? "Interrupted. What was written so far is kept." : "";
      trouble(error, error.kind === "unpaired" ? "Open settings" : "Write again", error.kind === "unpaired" ? refused : start);
    }
  } finally {
    finish(ended);
  }
}

function begin() {
  state.writing = new AbortController();
  [state.letter, state.claims, removed.length, heard] = ["", [], 0, 0];
  at("letter").replaceChildren(document.createTextNode(""));
  at("letter").removeAttribute("contenteditable");
  at("letter").setAttribute("aria-readonly", "true");
  at("letter").setAttribute("aria-busy", "true");
  at("letter").hidden = false;
  at("heard").replaceChildren();
  at("use").hidden = true;
  at("write").hidden = true;
  at("stop").hidden = false;
  at("stop").focus();
  tell(at("progress"), "The model reads the advert and your profile…");
  marks();
}

function took(event) {
  if (event.name === "text") {
    if (!state.letter) tell(at("progress"), "Writing…");
    state.letter = (state.letter + event.text).slice(0, LONGEST.letter);
    at("letter").firstChild.appendData(event.text);
    hear(false);
  } else if (event.name === "claim") {
    const claim = marked(state.letter, event);
    if (claim) state.claims.push(claim);
    marks();
  } else if (event.name === "cut") {
    return `The model wrote on after the end of the letter; that part was cut. ${event.why}`.trim();
  } else if (event.name === "done") {
    if (event.text !== state.letter) {
      state.letter = event.text;
      at("letter").firstChild.data = event.text;
    }
    state.claims = event.claims.map((claim) => marked(state.letter, claim)).filter(Boolean);
    return event.stopped || event.cut ? "" : "The letter reached the maximum length and may be incomplete.";
  }
  return "";
}

// Whole sentences go to the live region, so that a screen reader is not given single syllables.
function hear(all) {
  const rest = state.letter.slice(heard);
  const end = all ? rest.length : Math.max(rest.lastIndexOf(". "), rest.lastIndexOf("\n")) + 1;
  if (end <= 0) return;
  heard += end;
  if (rest.slice(0, end).trim()) at("heard").append(make("p", { textContent: rest.slice(0, end).trim() }));
}

function finish(ended) {
  state.writing = null;
  hear(true);
  const focused = document.activeElement === at("stop");
  at("stop").hidden = true;
  at("write").hidden = false;
  at("write").textContent = state.letter ? "Write another" : "Write the letter";
  at("letter").removeAttribute("aria-busy");
  at("letter").hidden = !state.letter;
  at("use").hidden = !state.letter;
  editable();
  marks();
  if (focused) at("letter-title").focus();
  tell(at("progress"), state.letter ? `${ended || "Finished."} ${count(state.letter.split(/\s+/).filter(Boolean).length, "word")}. You can edit the letter; what you change is not checked again.` : ended);
  saved();
}

function editable() {
  at("letter").setAttribute("contenteditable", "plaintext-only");
  at("letter").removeAttribute("aria-readonly");
}

export function restore(letter, claims) {
  [state.letter, state.claims] = [letter, claims];
  at("letter").textContent = letter;
  at("letter").hidden = at("use").hidden = false;
  at("write").textContent = "Write another";
  editable();
  marks();
}

// --- the marks, and the list of reasons

function marks() {
  const ranges = { unsupported: [], contradicted: [] };
  for (const claim of state.claims) ranges[claim.verdict]?.push(range(claim.start, claim.end));
  for (const [name, found] of Object.entries(ranges)) CSS.highlights.set(name, new Highlight(...found));
  CSS.highlights.delete("looked");
  const wrong = state.claims.filter((claim) => claim.verdict !== "supported").sort((one, other) => one.start - other.start);
  at("claims-box").hidden = !state.claims.length && !removed.length;
  at("tally").textContent = tally(wrong);
  at("claims").replaceChildren(...wrong.map(entry));
  at("back").hidden = !removed.length;
}

function tally(wrong) {
  const of = (verdict) => state.claims.filter((claim) => claim.verdict === verdict).length;
  const good = `${count(of("supported"), "statement")} supported by your fields`;
  if (!wrong.length) return `${good}; nothing to look at.`;
  return [good, of("contradicted") && `${of("contradicted")} contradicted (wavy line)`, of("unsupported") && `${of("unsupported")} unsupported (dotted line)`].filter(Boolean).join(", ") + ".";
}

function entry(claim) {
  const look = make("button", { type: "button", className: "small", textContent: "Show" });
  const remove = make("button", { type: "button", className: "small", textContent: "Remove the sentence", disabled: Boolean(state.writing) });
  for (const button of [look, remove]) button.setAttribute("aria-label", `${button.textContent}: ${claim.said}`);
  look.onclick = () => show(claim);
  remove.onclick = () => takeOut(claim);
  const where = claim.field && !claim.why.includes(claim.field) ? ` (field: ${claim.field})` : "";
  const made = make("li", {}, make("p", {}, make("span", { className: `badge ${claim.verdict}`, textContent: WORDS[claim.verdict] }), quote(claim)),
    make("p", { className: "soft", textContent: `${claim.why}${where}` }), make("div", { className: "moves" }, look, remove));
  made.claim = claim;
  return made;
}

// The claim with the words around it, for a claim may be one number.
function quote({ start, end, said }) {
  const before = state.letter.slice(0, start).split("\n").at(-1);
  const [after] = state.letter.slice(end).split("\n");
  const short = (words, cut) => (words.length > AROUND ? cut(words) : words);
  return make("span", { className: "quote" }, "“", short(before, (words) => `…${words.slice(words.indexOf(" ", words.length - AROUND))}`), make("strong", { textContent: said }),
    short(after, (words) => `${words.slice(0, words.lastIndexOf(" ", AROUND) + 1)}…`), "”");
}

// The letter lies in one text node, in several after an edit.
function range(start, end) {
  const made = document.createRange();
  const walker = document.createTreeWalker(at("letter"), NodeFilter.SHOW_TEXT);
  let passed = 0;
  made.setStart(at("letter"), 0);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const { length } = node.data;
    if (start >= passed && start <= passed + length) made.setStart(node, start - passed);
    if (end > passed && end <= passed + length) made.setEnd(node, end - passed);
    passed += length;
  }
  return made;
}

function show(claim) {
  const found = range(claim.start, claim.end);
  CSS.highlights.set("looked", new Highlight(found));
  at("letter").focus({ preventScroll: true });
  getSelection().setBaseAndExtent(found.startContainer, found.startOffset, found.endContainer, found.endOffset);
  found.startContainer.parentElement.scrollIntoView({ block: "nearest" });
}

// The entry of the mark in which the cursor stands.
function look() {
  const selection = getSelection();
  if (!selection.anchorNode || !at("letter").contains(selection.anchorNode) || state.writing) return;
  const before = document.createRange();
  before.setStart(at("letter"), 0);
  before.setEnd(selection.anchorNode, selection.anchorOffset);
  const place = before.toString().length;
  for (const item of at("claims").children) item.setAttribute("aria-current", String(item.claim.start <= place && place <= item.claim.end));
}

// --- changes

function edited() {
  const now = at("letter").textContent;
  state.claims = shifted(state.claims, state.letter, now);
  state.letter = now;
  removed.length = 0;
  marks();
  saved();
}

function takeOut(claim) {
  const [start, end] = sentence(state.letter, claim.start, claim.end);
  removed.push({ letter: state.letter, claims: state.claims });
  const place = [...at("claims").children].findIndex((item) => item.claim === claim);
  change(state.letter.slice(0, start) + state.letter.slice(end), state.claims.filter((each) => each.end <= start || each.start >= end));
  tell(at("progress"), "The sentence was removed.");
  const next = at("claims").children[Math.min(place, at("claims").children.length - 1)];
  (next?.querySelector("button:last-of-type") ?? at("back")).focus();
}

function change(letter, claims) {
  state.claims = shifted(claims, state.letter, letter);
  state.letter = letter;
  at("letter").textContent = letter;
  marks();
  saved();
}

function putBack() {
  const before = removed.pop();
  [state.letter, state.claims] = [before.letter, before.claims];
  at("letter").textContent = before.letter;
  marks();
  saved();
  tell(at("progress"), "The sentence was restored.");
  (at("back").hidden ? at("letter") : at("back")).focus();
}
