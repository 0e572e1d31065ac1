// Settings: pairing with the server, the profile, deleting everything.

import { LONGEST } from "./lib/bounds.js";
import { at, make, tell } from "./lib/dom.js";
import { exported, imported } from "./lib/profile.js";
import { Trouble, health, loopback, pair, recipes } from "./lib/server.js";
import { ADDRESS, PROFILE, filled, forget, keep, kept, profileOf } from "./lib/store.js";

let stored = null;
let turn = 0; // of asking the server; the last one tells

async function load() {
  stored = await kept();
  at("address").value ||= stored.server.address; // unless somebody was faster
  show(stored.profile);
  saved();
  await server();
}

// --- the server

async function server() {
  const { server: known } = stored;
  const mine = ++turn;
  at("unpair").hidden = !known.token;
  let said = "";
  try {
    const told = await health(known);
    if (!known.token) said = `A server ${told === "ok" ? "runs" : "starts"} at ${known.address}. This browser is not paired with it yet.`;
    else said = (await recipes(known), `Paired with ${known.address}. The server is running.`);
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    said = error.message;
  }
  if (mine === turn) tell(at("server-told"), said);
}

async function pairing(event) {
  event.preventDefault();
  at("pair-told").textContent = "";
  try {
    const address = loopback(at("address").value);
    const code = at("code").value.replace(/[\s-]/g, "");
    const token = await pair(address, code);
    await keep({ server: { address, token } });
    stored = await kept();
    at("code").value = "";
    at("address").value = address;
    await server();
    at("unpair").focus();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    at("pair-told").textContent = error.message;
    at("code").focus();
  }
}

async function unpair() {
  await keep({ server: { address: stored.server.address, token: "" } });
  stored = await kept();
  await server();
  at("code").focus();
}

// --- the profile

const typed = () => profileOf(Object.fromEntries(PROFILE.map((name) => [name, at(name).value])));
const show = (profile) => { for (const name of PROFILE) at(name).value = profile[name]; };
const saved = () => { at("discard").disabled = JSON.stringify(typed()) === JSON.stringify(stored.profile); };

async function take(source) {
  const { profile, notes } = imported(source);
  if (!filled(profile)) {
    tell(at("import-told"), notes.join(" ") || "No profile data was found in it.");
    return;
  }
  show(profile);
  saved();
  tell(at("import-told"), ["Read into the form below. Check it, then save it.", ...notes].join(" "));
  at("profile-title").focus();
}

async function fromFile() {
  const [file] = at("file").files;
  if (!file) return;
  if (file.size > LONGEST.imported * 4) tell(at("import-told"), "This file is too large for a profile.");
  else await take(await file.text());
  at("file").value = "";
}

async function save(event) {
  event.preventDefault();
  await keep({ profile: typed() });
  stored = await kept();
  saved();
  tell(at("profile-told"), "Saved in this browser.");
}

function discard() {
  show(stored.profile);
  saved();
  tell(at("profile-told"), "The changes were discarded.");
}

function download() {
  const address = URL.createObjectURL(new Blob([`${JSON.stringify(exported(typed()), null, 2)}\n`], { type: "application/json" }));
  make("a", { href: address, download: "profile.resume.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  tell(at("profile-told"), "Exported.");
}

// --- deleting

function asking(open) {
  at("delete").hidden = open;
  at("sure").hidden = at("keep").hidden = !open;
  (open ? at("keep") : at("delete")).focus();
}

async function wipe() {
  await forget();
  at("address").value = ADDRESS;
  asking(false);
  await load();
  tell(at("data-told"), "Everything is deleted.");
}

at("pairing").onsubmit = pairing;
at("unpair").onclick = unpair;
at("import").onclick = () => take(at("pasted").value);
at("file").onchange = fromFile;
at("profile").onsubmit = save;
at("profile").oninput = saved;
at("discard").onclick = discard;
at("export").onclick = download;
at("delete").onclick = () => asking(true);
at("keep").onclick = () => asking(false);
at("sure").onclick = wipe;
load();
