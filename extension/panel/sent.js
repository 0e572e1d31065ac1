// The recipe's fields: where each comes from, its text as it will be sent, and what is wrong with it.

import { at, count, make } from "../lib/dom.js";
import { SOURCES, sources, value, wrong } from "../lib/mapping.js";
import { keep } from "../lib/store.js";
import { state } from "./state.js";

const rows = new Map(); // field name -> {field, source, area, note}

export function build() {
  rows.clear();
  const recipe = state.recipe;
  at("fields-told").textContent = recipe
    ? "Exactly these texts go to the server on this computer. Check them, choose another source, or type."
    : "The letter's fields appear here once the server is connected.";
  at("system-box").hidden = !recipe;
  at("system").value = recipe?.system ?? "";
  const chosen = recipe ? sources(recipe, state.kept.choices) : {};
  at("fields").replaceChildren(...(recipe?.fields ?? []).map((field, index) => row(field, chosen[field.name], index)));
  refill();
}

function row(field, chosen, index) {
  const area = make("textarea", { id: `field-${index}`, rows: 1, title: field.help });
  const note = make("p", { id: `note-${index}`, className: "note" });
  area.setAttribute("aria-describedby", note.id);
  area.required = field.required;
  const label = make("label", { textContent: field.label + (field.required ? " *" : ""), htmlFor: area.id });
  const source = make("select", {}, ...Object.entries(SOURCES).map(([key, words]) => make("option", { value: key, textContent: words })));
  source.value = chosen;
  source.setAttribute("aria-label", `Where “${field.label}” comes from`);
  source.onchange = () => { choose(field.name, source.value); refill(); };
  area.oninput = () => { source.value = "typed"; check(field.name); };
  rows.set(field.name, { field, source, area, note, left: 0 });
  return make("div", { className: "sent" }, make("div", { className: "sent-head" }, label, source), area, note);
}

function choose(name, source) {
  const { choices } = state.kept;
  choices[state.recipe.name] = { ...choices[state.recipe.name], [name]: source };
  keep({ choices });
}

// Fields that were typed here stay as they are.
export function refill() {
  for (const [name, row] of rows) {
    if (row.source.value !== "typed") {
      const { text, left } = value(row.field, row.source.value, state.advert, state.kept.profile);
      row.area.value = text;
      row.left = left;
    }
    check(name);
  }
}

function check(name, strict = false) {
  const row = rows.get(name);
  const [found] = wrong({ fields: [row.field] }, { [name]: row.area.value });
  const bad = Boolean(found) && (strict || row.area.value.trim() !== "");
  row.area.setAttribute("aria-invalid", String(bad));
  row.note.classList.toggle("bad", bad);
  const left = row.source.value !== "typed" && row.left ? `Cut to fit: ${count(row.left, "character")} left out.` : "";
  row.note.textContent = bad ? `“${row.field.label}” ${found.why}.` : left || (row.area.value ? "" : row.field.help);
  return found ?? null;
}

// The values to send, or null after the focus went to the first field that is wrong.
export function values() {
  const found = [...rows.keys()].map((name) => check(name, true)).filter(Boolean);
  if (found.length) {
    rows.get(found[0].name).area.focus();
    return null;
  }
  return Object.fromEntries([...rows].map(([name, row]) => [name, row.area.value.trim()]));
}

export function system() {
  const typed = at("system").value;
  return typed === state.recipe.system ? null : typed;
}
