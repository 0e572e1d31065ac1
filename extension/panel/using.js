// The finished letter: into a field of the page, to the clipboard, into a file.

import { at, count, make, tell } from "../lib/dom.js";
import { state } from "./state.js";
import { Unreadable, fields, insert, show } from "./tab.js";
import { calm, trouble } from "./trouble.js";

const KINDS = { line: "one line", text: "text box", editor: "editor" };
const WHY = {
  gone: "That field is no longer on the page. Look for the fields again.",
  refused: "The page did not take the letter. Copy it and paste it by hand.",
};
let last = null; // {number, before}: what the last field held

export function setUp() {
  at("insert").onclick = find;
  at("place").onclick = () => put(chosen());
  at("places-away").onclick = () => { at("places").hidden = true; at("insert").focus(); };
  at("restore").onclick = putBack;
  at("copy").onclick = copy;
  at("download").onclick = download;
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    trouble(error, "Try again", find);
  }
}

const find = () => guarded(async () => {
  const found = await fields();
  calm(true);
  at("restore").hidden = true;
  if (!found.length) tell(at("used"), "This page has no field to write into. Open the application form, click the tunesmith icon there, and insert again; or copy the letter.");
  else if (found.length === 1 && !found[0].holds) await put(found[0]);
  else choose(found);
});

function choose(found) {
  tell(at("used"), "");
  at("places-list").replaceChildren(...found.map((field, index) => {
    const input = make("input", { type: "radio", name: "place", value: String(index), checked: index === 0 });
    input.field = field;
    input.onchange = () => guarded(() => show(field.number));
    const notes = [KINDS[field.kind], field.frame && "in a frame", field.limit && `takes ${count(field.limit, "character")}`, field.holds && `holds ${count(field.holds, "character")}, which are replaced`];
    return make("label", { className: "choice" }, input, make("span", {}, field.label || "Without a name", make("small", { textContent: notes.filter(Boolean).join(", ") })));
  }));
  at("places").hidden = false;
  at("places-list").querySelector("input").focus();
  guarded(() => show(found[0].number));
}

const chosen = () => [...at("places-list").querySelectorAll("input")].find((input) => input.checked).field;

const put = (field) => guarded(async () => {
  const told = await insert(field.number, state.letter);
  const name = field.label ? `“${field.label}”` : "the field";
  if (told.why === "limit") {
    tell(at("used"), `${name} takes ${count(field.limit, "character")}; the letter has ${state.letter.length.toLocaleString("en")}. Shorten it first.`);
    return;
  }
  at("places").hidden = true;
  tell(at("used"), told.done ? `Inserted into ${name}. Read it there before you send it.` : WHY[told.why] ?? WHY.refused);
  last = { number: field.number, before: told.before };
  at("restore").hidden = !told.done || !told.before;
  at("insert").focus();
});

const putBack = () => guarded(async () => {
  const told = await insert(last.number, last.before);
  tell(at("used"), told.done ? "The field's previous text was restored." : WHY[told.why] ?? WHY.refused);
  at("restore").hidden = told.done;
  at("insert").focus();
});

async function copy() {
  try {
    await navigator.clipboard.writeText(state.letter);
    tell(at("used"), "Copied.");
  } catch {
    tell(at("used"), "Chrome did not allow copying. Select the letter and copy it by hand.");
  }
}

function download() {
  const name = [state.advert.title, state.advert.company].filter(Boolean).join(" ").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 80);
  const address = URL.createObjectURL(new Blob([`${state.letter.trim()}\n`], { type: "text/plain" }));
  make("a", { href: address, download: `letter${name ? `-${name}` : ""}.txt` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  tell(at("used"), "Saved as a text file.");
}
