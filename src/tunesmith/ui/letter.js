// The letter: a plain textarea, and behind it the same text with its marks. A model's words go in by textContent alone.
const area = element.querySelector("textarea");
const marks = element.querySelector(".marks");
const told = element.querySelector(".told");
const WAIT_MS = 700; // without a key, until an edited text is checked again
let claims = [];
let version = 0;
let busy = false;
let before = "";
let timer = 0;
let said = "";

// Claims count code points, JavaScript counts UTF-16 units.
function places(text) {
  const found = [0];
  for (const each of text) found.push(found.at(-1) + each.length);
  return found;
}

function draw() {
  const text = area.value;
  const at = places(text);
  const pieces = [];
  let done = 0;
  for (const claim of [...claims].sort((one, other) => one.start - other.start)) {
    const [start, end] = [at[claim.start], at[claim.end]];
    if (claim.verdict === "supported" || start === undefined || end === undefined || start < done) continue;
    const mark = document.createElement("mark");
    mark.className = claim.verdict === "contradicted" ? "contradicted" : "unsupported";
    mark.textContent = text.slice(start, end);
    pieces.push(text.slice(done, start), mark);
    done = end;
  }
  marks.replaceChildren(...pieces, `${text.slice(done)}\n`);
}

function tell(text) { if (told.textContent !== text) told.textContent = text; }

function show() {
  const value = props.value ?? {};
  if ((value.version ?? 0) < version) return; // what was typed since is newer, and is checked next
  version = value.version ?? 0;
  if (value.busy && !busy && matchMedia("(max-width: 760px)").matches) { // the form stands above it there
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  }
  busy = Boolean(value.busy);
  claims = value.claims ?? [];
  const text = value.text ?? "";
  if (area.value !== text) {
    const [start, end, held] = [area.selectionStart, area.selectionEnd, document.activeElement === area];
    area.value = text;
    if (held) area.setSelectionRange(Math.min(start, text.length), Math.min(end, text.length));
  }
  before = text;
  area.readOnly = busy;
  area.setAttribute("aria-busy", String(busy));
  for (const button of element.querySelectorAll("button")) button.disabled = busy || !text;
  if (value.say !== undefined && value.say !== said) tell(said = value.say);
  draw();
}

// Claims before what was changed stay, those behind it move along, those that it touches go.
function moved(old, now) {
  const [one, two] = [[...old], [...now]];
  const most = Math.min(one.length, two.length);
  let head = 0;
  let tail = 0;
  while (head < most && one[head] === two[head]) head += 1;
  while (tail < most - head && one[one.length - 1 - tail] === two[two.length - 1 - tail]) tail += 1;
  const [end, by] = [one.length - tail, two.length - one.length];
  return claims.filter((each) => each.end <= head || each.start >= end)
    .map((each) => (each.end <= head ? each : { ...each, start: each.start + by, end: each.end + by }));
}

function changed() {
  claims = moved(before, area.value);
  before = area.value;
  version += 1;
  props.value = { ...props.value, text: area.value, claims, version };
  for (const button of element.querySelectorAll("button")) button.disabled = !area.value;
  draw();
  clearTimeout(timer);
  timer = setTimeout(() => trigger("edited"), WAIT_MS);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(area.value);
  } catch {
    area.select();
    document.execCommand("copy");
  }
  tell("Copied.");
}

async function take(kind) {
  if (kind === "copy") { await copy(); return; }
  tell(`Making the .${kind} file.`);
  const made = await server.document([kind, area.value]).catch((error) => ({ error: String(error) }));
  if (!made || made.error) { tell(made?.error ?? "The file could not be made."); return; }
  const bytes = Uint8Array.from(atob(made.data), (each) => each.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: made.type }));
  link.download = made.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  tell(`${made.name} is among your downloads.`);
}

function select(id) {
  const claim = claims.find((each) => each.id === id);
  if (!claim) return;
  const at = places(area.value);
  area.focus({ preventScroll: true });
  area.setSelectionRange(at[claim.start], at[claim.end]);
  element.querySelectorAll("mark")[0]?.closest(".sheet").scrollIntoView({ block: "nearest" });
}

area.addEventListener("input", changed);
element.addEventListener("click", (event) => {
  const kind = event.target.closest("button[data-take]")?.dataset.take;
  if (kind) take(kind);
});
document.addEventListener("tunesmith-claim", (event) => { if (element.isConnected) select(event.detail); });
watch("value", show);
show();
