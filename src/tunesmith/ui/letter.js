// The editor: a textarea over a copy of its text with highlighted claims. Model output is only set by textContent.
const area = element.querySelector("textarea");
const marks = element.querySelector(".marks");
const status = element.querySelector(".status");
const WAIT_MS = 700; // pause in typing after which an edited text is checked again
let claims = [];
let version = 0;
let busy = false;
let lastText = "";
let timer = 0;
let lastStatus = "";

// UTF-16 offset of each code point: claims count code points, JavaScript strings count UTF-16 units.
function utf16Offsets(text) {
  const offsets = [0];
  for (const char of text) offsets.push(offsets.at(-1) + char.length);
  return offsets;
}

function draw() {
  const text = area.value;
  const offsets = utf16Offsets(text);
  const pieces = [];
  let drawnTo = 0;
  for (const claim of [...claims].sort((a, b) => a.start - b.start)) {
    const [start, end] = [offsets[claim.start], offsets[claim.end]];
    if (claim.verdict === "supported" || start === undefined || end === undefined || start < drawnTo) continue;
    const mark = document.createElement("mark");
    mark.className = claim.verdict === "contradicted" ? "contradicted" : "unsupported";
    mark.textContent = text.slice(start, end);
    pieces.push(text.slice(drawnTo, start), mark);
    drawnTo = end;
  }
  marks.replaceChildren(...pieces, `${text.slice(drawnTo)}\n`);
}

function setStatus(text) { if (status.textContent !== text) status.textContent = text; }

function show() {
  const value = props.value ?? {};
  if ((value.version ?? 0) < version) return; // the user has typed since; that text is checked next
  version = value.version ?? 0;
  if (value.busy && !busy && matchMedia("(max-width: 760px)").matches) { // on small screens the form is above the editor
    const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "start", behavior: reducedMotion ? "auto" : "smooth" });
  }
  busy = Boolean(value.busy);
  claims = value.claims ?? [];
  const text = value.text ?? "";
  if (area.value !== text) {
    const [start, end, focused] = [area.selectionStart, area.selectionEnd, document.activeElement === area];
    area.value = text;
    if (focused) area.setSelectionRange(Math.min(start, text.length), Math.min(end, text.length));
  }
  lastText = text;
  area.readOnly = busy;
  area.setAttribute("aria-busy", String(busy));
  for (const button of element.querySelectorAll("button")) button.disabled = busy || !text;
  if (value.status !== undefined && value.status !== lastStatus) setStatus(lastStatus = value.status);
  draw();
}

// Keeps claims before an edit, shifts those after it, and drops those that it touches.
function movedClaims(oldText, newText) {
  const [before, after] = [[...oldText], [...newText]];
  const shorter = Math.min(before.length, after.length);
  let head = 0;
  let tail = 0;
  while (head < shorter && before[head] === after[head]) head += 1;
  while (tail < shorter - head && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
  const [end, shift] = [before.length - tail, after.length - before.length];
  return claims.filter((claim) => claim.end <= head || claim.start >= end)
    .map((claim) => (claim.end <= head ? claim : { ...claim, start: claim.start + shift, end: claim.end + shift }));
}

function changed() {
  claims = movedClaims(lastText, area.value);
  lastText = area.value;
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
  setStatus("Copied.");
}

async function exportText(kind) {
  if (kind === "copy") { await copy(); return; }
  setStatus(`Creating the .${kind} file.`);
  const file = await server.document([kind, area.value]).catch((error) => ({ error: String(error) }));
  if (!file || file.error) { setStatus(file?.error ?? "The file could not be created."); return; }
  const bytes = Uint8Array.from(atob(file.data), (char) => char.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: file.type }));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  setStatus(`${file.name} is in your downloads.`);
}

function select(id) {
  const claim = claims.find((item) => item.id === id);
  if (!claim) return;
  const offsets = utf16Offsets(area.value);
  area.focus({ preventScroll: true });
  area.setSelectionRange(offsets[claim.start], offsets[claim.end]);
  element.querySelectorAll("mark")[0]?.closest(".sheet").scrollIntoView({ block: "nearest" });
}

area.addEventListener("input", changed);
element.addEventListener("click", (event) => {
  const kind = event.target.closest("button[data-export]")?.dataset.export;
  if (kind) exportText(kind);
});
document.addEventListener("tunesmith-claim", (event) => { if (element.isConnected) select(event.detail); });
watch("value", show);
show();
