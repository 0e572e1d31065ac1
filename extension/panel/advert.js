// Reading the page's advert into the form, where it is corrected.

import { at, count, make, tell } from "../lib/dom.js";
import { refill } from "./sent.js";
import { state } from "./state.js";
import { Unreadable, read } from "./tab.js";
import { calm, trouble } from "./trouble.js";

const BOXES = { title: "advert-name", company: "advert-company", requirements: "advert-requirements", description: "advert-description" };
const FROM = {
  "JSON-LD": "from the page's own job data (JSON-LD)", microdata: "from the page's own job data (microdata)",
  text: "guessed from the page's text, so check it", selection: "from what you selected on the page",
};
const EMPTY = "Open a page with a job advert and click the tunesmith icon in the toolbar (or press Alt+Shift+L). Only that click lets tunesmith read the page.";

let turn = 0; // of reading; a click on another page begins a new one
let spare = null; // what a page without an advert said at all
let saved = () => {};

export function setUp(save) {
  saved = save;
  at("advert-told").textContent = EMPTY;
  at("read").onclick = start;
  at("take").onclick = () => { at("take").hidden = true; use([spare]); };
  for (const [name, box] of Object.entries(BOXES)) {
    at(box).oninput = () => { state.advert[name] = at(box).value; refill(); saved(); };
  }
}

export async function start() {
  const mine = ++turn;
  at("read").disabled = true;
  at("take").hidden = true;
  at("advert-hint").hidden = true;
  tell(at("advert-told"), "Reading the page…");
  try {
    const told = await read();
    if (mine !== turn) return;
    calm(true);
    if (told.found) use(told.adverts);
    else none(told);
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    if (mine !== turn) return;
    tell(at("advert-told"), "Nothing was read.");
    trouble(error, "Try again", start);
  } finally {
    if (mine === turn) at("read").disabled = false;
  }
}

function none(told) {
  spare = told.adverts[0]?.description ? told.adverts[0] : null;
  at("take").hidden = !spare;
  const foreign = told.foreign.length ? ` Part of the page belongs to another site (${told.foreign.join(", ")}); open that part in a tab of its own.` : "";
  tell(at("advert-told"), `No job advert was found on this page.${foreign} You can select the advert's text on the page and read again, or type it below.`);
  at("advert-form").open = true;
}

function use(adverts) {
  at("adverts-box").hidden = adverts.length < 2;
  at("adverts").replaceChildren(...adverts.map((advert, index) => make("option", { value: String(index), textContent: [advert.title || "Untitled", advert.company].filter(Boolean).join(", ") })));
  at("adverts").onchange = () => show(adverts[Number(at("adverts").value)], adverts.length);
  show(adverts[0], adverts.length);
}

function show(advert, many) {
  const names = [advert.title, advert.company].filter(Boolean).join(" at ") || "An advert without a title";
  const cut = advert.clipped?.length ? ` It is very long: ${advert.clipped.join(" and ")} cut.` : "";
  const others = many > 1 ? ` The page has ${count(many, "advert")}; choose below.` : "";
  const missing = advert.requirements ? "" : " No list of requirements was found; the description stands in.";
  tell(at("advert-told"), `${names}, ${FROM[advert.from]}.${missing}${cut}${others}`);
  fill(advert);
  at("advert-form").open = true;
  saved();
}

export function fill(advert) {
  state.advert = { ...advert };
  for (const [name, box] of Object.entries(BOXES)) at(box).value = advert[name] ?? "";
  refill();
}

export function hint(text) {
  at("advert-hint").textContent = text;
  at("advert-hint").hidden = !text;
}
