// The page of one reviewer. Text of models and rows is inserted with textContent, never as markup.

const SIDES = ["left", "right"];
const ANSWERS = ["yes", "no", "cannot say"];
const KEYS = { left: ["q", "w", "e", "r"], right: ["u", "i", "o", "p"] };
const PREFERENCES = [["left", "Left", "1"], ["tie", "Tie", "0"], ["right", "Right", "2"]];
const RETRY_MS = 2000;
const PENDING = "tunesmith-review-pending"; // a judgment that the server has not taken yet, kept over a reload
const TOKEN = "tunesmith-review-token";

const at = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => { setTimeout(done, ms); at("again").onclick = done; });

let state = null; // of /api/state
let pair = null; // the pair on the page
let note = null; // how the note was when the pair came
let busy = true;
let over = false;
let lost = ""; // told on the pair that comes next
let seen = 0; // ms that this pair was visible
let since = 0;

function make(tag, changes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), changes);
  made.append(...children);
  return made;
}

function key(text) { return make("kbd", { textContent: text }); }

// --- asking the server: what cannot be sent is kept and sent again

async function ask(path, body) {
  for (;;) {
    let answer = null;
    try {
      answer = await fetch(path, {
        method: body ? "POST" : "GET",
        headers: { Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}`, ...(body && { "Content-Type": "application/json" }) },
        body: body && JSON.stringify(body),
      });
      if (answer.ok) {
        const told = await answer.json();
        at("trouble").hidden = true;
        return told;
      }
    } catch {
      answer = null;
    }
    const kept = body ? " Your judgment is kept here." : "";
    if (answer === null) trouble(`The server does not answer.${kept} Trying again every ${RETRY_MS / 1000} seconds.`);
    else if (answer.status === 401) stop(`This address is no longer valid.${kept} Open the address that the terminal shows now in this tab.`);
    else if (answer.status >= 500) trouble(`${await detail(answer)}${kept} Trying again every ${RETRY_MS / 1000} seconds.`);
    else return { refused: answer.status, detail: await detail(answer) };
    await wait(RETRY_MS);
  }
}

async function detail(answer) {
  try {
    const told = (await answer.json()).detail;
    return typeof told === "string" ? told : JSON.stringify(told);
  } catch {
    return `The server failed (${answer.status}).`;
  }
}

function trouble(text) {
  if (at("trouble-text").textContent !== text) at("trouble-text").textContent = text; // announced once, not every two seconds
  at("trouble").hidden = false;
}

function stop(text) {
  trouble(text);
  at("again").hidden = true;
  over = true;
  throw new Error(text);
}

// --- what is on the page

function setup() {
  at("who").textContent = `${state.name}, reviewer ${state.reviewer}`;
  at("note").maxLength = state.longest_note;
  for (const side of SIDES) {
    const title = side === "left" ? "Left reply" : "Right reply";
    const questions = state.questions.map((question, index) => asking(side, question, KEYS[side][index]));
    const heading = make("h3", { id: `title-${side}`, textContent: title });
    const card = make("article", { className: "reply" }, heading, make("div", { className: "text", id: `text-${side}` }), ...questions);
    card.setAttribute("aria-labelledby", heading.id);
    at("pair").append(card);
  }
  const choices = PREFERENCES.map(([value, label, shortcut]) => choice("preference", value, label, shortcut));
  at("preference").append(make("div", { className: "choices" }, ...choices));
  for (const question of state.questions) define(at("meanings"), question.name, question.text);
  for (const [keys, text] of explained()) define(at("keys"), keys, text);
}

function asking(side, question, shortcut) {
  const legend = make("legend", {}, `${capital(question.name)} `, key(shortcut));
  const choices = ANSWERS.map((answer) => choice(`${side}-${question.name}`, answer, answer));
  const fieldset = make("fieldset", { className: "question", title: question.text }, legend, make("div", { className: "choices" }, ...choices));
  fieldset.setAttribute("aria-label", `${capital(side)} reply: ${question.name}`);
  fieldset.setAttribute("aria-keyshortcuts", shortcut);
  return fieldset;
}

function choice(name, value, label, shortcut) {
  const input = make("input", { type: "radio", name, value });
  if (shortcut) input.setAttribute("aria-keyshortcuts", shortcut);
  return make("label", { className: "choice" }, input, label, ...(shortcut ? [" ", key(shortcut)] : []));
}

function explained() {
  const names = state.questions.map((question) => question.name).join(", ");
  return [
    [KEYS.left.join(" "), `left reply: ${names}; once yes, twice no, three times cannot say`],
    [KEYS.right.join(" "), `right reply: ${names}, likewise`],
    ["1, 2", "the left or the right reply is better"],
    ["0 or t", "tie"],
    ["x", "cannot say, for every question that has no answer yet"],
    ["n", "write a note; Esc leaves it"],
    ["Enter", "save and go to the next pair"],
    ["Backspace", "back to the pair before; what you change there replaces what you said"],
    ["?", "this help"],
  ];
}

function define(list, term, text) {
  list.append(make("dt", { textContent: term }), make("dd", { textContent: text }));
}

function capital(text) { return text.charAt(0).toUpperCase() + text.slice(1); }

function fill(place, text) {
  place.textContent = text.trim() ? text : "(an empty reply)";
  place.classList.toggle("empty", !text.trim());
}

function show(told) {
  pair = told;
  const given = told.given ?? { left: {}, right: {}, preference: "", seconds: 0, note: "" };
  at("place").textContent = `Pair ${told.place + 1} of ${state.of}${told.given ? ", judged" : ""}`;
  const roles = { system: "System", user: "Request", assistant: "Earlier reply" };
  at("turns").replaceChildren(...told.turns.map((turn) => make("div", { className: "turn" },
    make("b", { textContent: roles[turn.role] ?? turn.role }), make("div", { className: "text", textContent: turn.text }))));
  at("fields").replaceChildren();
  for (const field of told.fields) define(at("fields"), field.name, field.value);
  at("fields-box").hidden = told.fields.length === 0;
  at("fields-box").open = told.fields.length > 0;
  for (const side of SIDES) {
    fill(at(`text-${side}`), told[side]);
    for (const question of state.questions) set(`${side}-${question.name}`, given[side][question.name] ?? "");
  }
  set("preference", given.preference);
  at("note").value = note = given.note;
  at("back").disabled = told.place === 0;
  at("missing").textContent = lost;
  at("judging").hidden = false;
  at("finished").hidden = true;
  [seen, since] = [0, performance.now()];
  window.scrollTo(0, 0);
  at("place").focus({ preventScroll: true });
  progress();
}

function progress() {
  at("progress").max = Math.max(state.of, 1);
  at("progress").value = state.done;
  at("count").textContent = `${state.done} of ${state.of} judged`;
}

function finish() {
  pair = null;
  progress();
  at("finished-equal").textContent = state.equal ? `${state.equal} more had two equal replies and were left out.` : "";
  at("judging").hidden = true;
  at("finished").hidden = false;
  at("finished-title").focus();
  tell("All pairs are judged");
}

function tell(text) { at("told").textContent = text; }

// --- what was chosen

function radios(name) { return [...document.querySelectorAll(`input[name="${name}"]`)]; }
function chosen(name) { return radios(name).find((input) => input.checked)?.value ?? ""; }
function set(name, value) { for (const input of radios(name)) input.checked = input.value === value; }

function turnOn(side, question) {
  const name = `${side}-${question.name}`;
  const next = ANSWERS[(ANSWERS.indexOf(chosen(name)) + 1) % ANSWERS.length];
  set(name, next);
  chose(`${capital(side)} reply, ${question.name}: ${next}`);
}

function prefer(value) {
  set("preference", value);
  chose(value === "tie" ? "Tie" : `The ${value} reply is better`);
}

function leaveOpen() {
  for (const name of names()) if (!chosen(name)) set(name, "cannot say");
  chose("The open questions: cannot say");
}

function chose(text) {
  tell(text);
  if (at("missing").textContent) at("missing").textContent = missing();
}

function names() { return SIDES.flatMap((side) => state.questions.map((question) => `${side}-${question.name}`)); }

function missing() {
  const open = names().filter((name) => !chosen(name)).map((name) => name.replace("-", " "));
  if (!chosen("preference")) open.push("your preference");
  return open.length ? `Still to answer: ${open.join(", ")}. The key x answers 'cannot say' to every open question.` : "";
}

function answers(side) {
  return Object.fromEntries(state.questions.map((question) => [question.name, chosen(`${side}-${question.name}`)]));
}

function changed() {
  const given = pair.given;
  if (!given || at("note").value !== note || given.preference !== chosen("preference")) return true;
  return SIDES.some((side) => state.questions.some((question) => given[side][question.name] !== chosen(`${side}-${question.name}`)));
}

// --- moving

async function move(step) {
  if (busy) return;
  busy = true;
  at("next").disabled = at("back").disabled = true;
  try {
    await step();
  } finally {
    busy = over;
    at("next").disabled = over;
    at("back").disabled = over || !pair || pair.place === 0;
  }
}

async function go(place) {
  if (place === null) finish();
  else {
    const told = await ask(`api/pairs/${place}`);
    if (told.refused) stop(`${told.detail}. Load the page again.`);
    show(told);
    tell(lost || `Pair ${place + 1} of ${state.of}`);
    lost = "";
  }
}

async function save() {
  const open = missing();
  if (open) {
    at("missing").textContent = open;
    tell(open);
    return;
  }
  const place = pair.place;
  if (changed()) {
    const now = performance.now();
    const seconds = (pair.given?.seconds ?? 0) + (seen + (document.hidden ? 0 : now - since)) / 1000;
    await send({ key: pair.key, left: answers("left"), right: answers("right"), preference: chosen("preference"), seconds, note: at("note").value });
  }
  await go(place + 1 < state.of ? place + 1 : state.open);
}

async function send(judgment) {
  sessionStorage.setItem(PENDING, JSON.stringify(judgment));
  const told = await ask("api/judgments", judgment);
  sessionStorage.removeItem(PENDING);
  if (told.refused) {
    lost = `Not saved: ${told.detail}.`;
    if (told.refused !== 409) stop(lost);
    Object.assign(state, await ask("api/state"));
  } else Object.assign(state, told);
}

async function back() {
  if (pair && pair.place > 0) await go(pair.place - 1);
  else if (!pair && state.of) await go(state.of - 1);
}

// --- keys

function act(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing || at("help").open) return;
  const target = event.target;
  if (target.id === "note") {
    if (event.key === "Escape") at("place").focus({ preventScroll: true });
    return;
  }
  const own = target.closest("button, summary") && (event.key === "Enter" || event.key === " "); // what has the focus goes first
  if (own || !at("single").checked || busy) return;
  const done = shortcut(event.key);
  if (done) {
    event.preventDefault();
    done();
  }
}

function shortcut(pressed) {
  if (pressed === "?") return help;
  if (pressed === "Backspace") return () => move(back);
  if (!pair) return null;
  const low = pressed.toLowerCase();
  for (const side of SIDES) {
    const index = KEYS[side].indexOf(low);
    if (index >= 0 && index < state.questions.length) return () => turnOn(side, state.questions[index]);
  }
  const found = {
    1: () => prefer("left"), 2: () => prefer("right"), 0: () => prefer("tie"), t: () => prefer("tie"),
    x: leaveOpen, n: () => at("note").focus(), enter: () => move(save),
  };
  return found[low] ?? null;
}

function help() {
  at("help").showModal();
  at("help-title").focus();
}

function watch() {
  document.addEventListener("keydown", act);
  document.addEventListener("change", (event) => { if (event.target.type === "radio") chose(""); });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) seen += performance.now() - since;
    else since = performance.now();
  });
  at("next").onclick = () => move(save);
  at("back").onclick = at("finished-back").onclick = () => move(back);
  at("help-open").onclick = help;
  at("help-close").onclick = () => at("help").close();
}

// --- the start

async function begin() {
  const token = location.hash.slice(1);
  if (token) {
    sessionStorage.setItem(TOKEN, token);
    history.replaceState(null, "", location.pathname); // so that it does not stay in the browser's history
  }
  state = await ask("api/state");
  setup();
  const pending = sessionStorage.getItem(PENDING);
  if (pending) await send(JSON.parse(pending));
  watch();
  await go(state.open);
  busy = false;
}

await begin();
