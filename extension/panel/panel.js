// The side panel: what the click on the icon says, what the server says, what is kept; the parts are in the files beside.

import { LONGEST, list, text } from "../lib/bounds.js";
import { at, make } from "../lib/dom.js";
import { Trouble, health, recipe, recipes } from "../lib/server.js";
import { filled, keep, kept } from "../lib/store.js";
import * as advert from "./advert.js";
import * as sent from "./sent.js";
import { state } from "./state.js";
import { calm, trouble } from "./trouble.js";
import * as using from "./using.js";
import * as writing from "./writing.js";

const FRESH_MS = 15_000; // a click that opened this panel is not older
const LOADING_MS = 3_000;
let windowId = 0;
let ownTab = null; // where the panel is opened as a page
let timer = 0;
let turn = 0; // of asking the server; the last one counts

// --- the server

function healthy(words, kind = "") {
  at("health").textContent = at("health").title = words;
  at("health").className = `state ${kind}`;
}

async function connect() {
  clearTimeout(timer);
  state.ready = false;
  const { server } = state.kept;
  const mine = ++turn;
  try {
    const told = await health(server);
    if (mine !== turn) return;
    if (told === "loading") {
      healthy("The model is loading…");
      timer = setTimeout(connect, LOADING_MS);
    } else if (told !== "ok") {
      throw new Trouble("loading", "The server is running, but its model does not answer. See its terminal.");
    } else if (!server.token) {
      throw new Trouble("unpaired", "This browser is not paired with the server yet. Open the settings and type the code that the terminal shows.");
    } else {
      await learn(server, mine);
    }
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (mine !== turn) return;
    healthy({ offline: "Server not running", unpaired: "Not paired", loading: "Server not ready" }[error.kind] ?? "Server trouble", "bad");
    trouble(error, error.kind === "unpaired" ? "Open settings" : "Try again", error.kind === "unpaired" ? settings : connect);
  }
  at("write").disabled = !state.ready;
}

async function learn(server, mine) {
  const known = await recipes(server);
  const names = known.map((each) => each.name);
  if (!names.length) throw new Trouble("refused", "The server has no recipe with fields. Start it with one: tunesmith serve YOUR-RUN --recipe cover-letter");
  const name = names.includes(state.kept.recipe) ? state.kept.recipe : names[0];
  const told = await recipe(server, name);
  if (mine !== turn) return;
  const same = JSON.stringify(told) === JSON.stringify(state.recipe);
  state.recipe = told;
  at("recipes-box").hidden = names.length < 2;
  at("recipes").replaceChildren(...known.map((each) => make("option", { value: each.name, textContent: each.name, title: each.about })));
  at("recipes").value = name;
  if (!same) sent.build();
  state.ready = true;
  calm(false);
  healthy(`Ready: ${told.model || told.name}`, "good");
}

const settings = () => chrome.runtime.openOptionsPage();

// --- the profile

function you() {
  const { profile } = state.kept;
  const parts = [profile.current && "current work", profile.past && "past work", profile.skills && "skills", profile.qualifications && "qualifications"].filter(Boolean);
  at("you-told").textContent = filled(profile) ? `${profile.name || "No name yet"}: ${parts.join(", ") || "nothing else yet"}.` : "No profile yet. Paste your CV or import a JSON Resume once; it stays in this browser.";
  at("profile").textContent = filled(profile) ? "Edit your profile" : "Set up your profile";
}

// --- clicks on the icon, other tabs

function clicked(told) {
  if (!told || told.windowId !== windowId || !Number.isInteger(told.tabId)) return;
  const fresh = Date.now() - told.at < FRESH_MS;
  [state.tab, state.clicked] = [told.tabId, told.at];
  advert.hint("");
  if (!fresh) return;
  if (!state.letter && !state.writing) advert.start();
  else advert.hint("This page can be read and filled in now. “Read this page” replaces the advert below.");
}

function moved({ tabId, windowId: where }) {
  if (where !== windowId || tabId === ownTab || state.tab === null) return;
  advert.hint(tabId === state.tab ? "" : "Another tab is in front. To read or fill that one, click the tunesmith icon there.");
}

// --- what is kept while the browser runs, should the panel be closed

let saving = 0;
function save() {
  clearTimeout(saving);
  saving = setTimeout(() => chrome.storage.session.set({ draft: { advert: state.advert, letter: state.letter, claims: state.claims } }), 300);
}

function restore(draft) {
  if (!draft) return;
  const parts = Object.fromEntries(["title", "company", "description", "requirements"].map((name) => [name, text(draft.advert?.[name], LONGEST[name])]));
  if (Object.values(parts).some(Boolean)) {
    advert.fill({ ...parts, from: text(draft.advert?.from, 20) });
    at("advert-form").open = true;
    at("advert-told").textContent = "The advert you read last.";
  }
  const letter = text(draft.letter, LONGEST.letter);
  if (letter) writing.restore(letter, list(draft.claims, 500));
}

async function changed(changes, area) {
  if (area === "session" && changes.clicked) clicked(changes.clicked.newValue);
  if (area !== "local") return;
  state.kept = await kept();
  if (changes.profile) { you(); sent.refill(); }
  if (changes.server && !state.writing) connect();
}

async function main() {
  state.kept = await kept();
  windowId = (await chrome.windows.getCurrent()).id;
  ownTab = (await chrome.tabs.getCurrent())?.id ?? null;
  advert.setUp(save);
  writing.setUp(save, settings);
  using.setUp();
  sent.build();
  you();
  at("settings").onclick = at("profile").onclick = settings;
  at("trouble-away").onclick = () => calm();
  at("recipes").onchange = () => { state.kept.recipe = at("recipes").value; keep({ recipe: at("recipes").value }); connect(); };
  chrome.storage.onChanged.addListener(changed);
  chrome.tabs.onActivated.addListener(moved);
  const session = await chrome.storage.session.get(["clicked", "draft"]);
  restore(session.draft);
  clicked(session.clicked);
  await connect();
}

main();
