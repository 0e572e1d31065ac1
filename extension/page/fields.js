// Where a letter can go on this page: its text fields are listed, and one is filled when the panel says which.

(() => {
  const page = (globalThis.tunesmith ??= {});
  const MOST_FIELDS = 40;
  const SETTLE_MS = 120; // a framework that does not want the text has put its own back by then
  const TYPES = new Set(["text", "search", "url", "email", ""]);
  const LIKELY = /cover|letter|motivation|anschreiben|bewerbung|lettre|carta|presentaci|message|nachricht|why|about you|lettera|brief/i;
  const kept = (page.kept ??= new Map()); // the number the panel was told -> the element

  page.fields = (document) => {
    kept.clear();
    const found = page.documents(document).found.flatMap((each, frame) => within(each).map((element) => ({ element, frame })));
    const listed = found.filter(({ element }) => usable(element)).slice(0, MOST_FIELDS).map(({ element, frame }, number) => {
      kept.set(number, element);
      const label = labelOf(element);
      return { number, label, kind: kindOf(element), holds: held(element).length, limit: limitOf(element), frame: frame > 0, likely: LIKELY.test(label) };
    });
    const rank = (field) => (field.likely ? 0 : 2) + (field.kind === "line" ? 3 : 0);
    return listed.sort((one, other) => rank(one) - rank(other) || one.number - other.number);
  };

  function within(root) {
    const found = root.designMode === "on" ? [root.body] : [];
    for (const element of root.querySelectorAll("*")) {
      if (element.shadowRoot) found.push(...within(element.shadowRoot));
      if (element.tagName === "TEXTAREA" || (element.tagName === "INPUT" && TYPES.has(element.type)) || editable(element)) found.push(element);
    }
    return found;
  }

  function editable(element) {
    const asked = element.getAttribute("contenteditable");
    return asked !== null && asked.toLowerCase() !== "false" && !element.parentElement?.isContentEditable;
  }

  function usable(element) {
    if (element.disabled || element.readOnly || element.getAttribute("aria-readonly") === "true") return false;
    return element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;
  }

  function kindOf(element) {
    if (element.tagName === "INPUT") return "line";
    return element.tagName === "TEXTAREA" ? "text" : "editor";
  }

  function labelOf(element) {
    const root = element.getRootNode();
    const pointed = (element.getAttribute("aria-labelledby") ?? "").split(/\s+/).filter(Boolean).map((id) => root.getElementById?.(id)?.textContent ?? "").join(" ");
    const own = [...(element.labels ?? [])].map((label) => page.written(page.lines(label))).join(" ");
    const words = [element.getAttribute("aria-label"), pointed, own, element.getAttribute("placeholder"), element.title, element.name, element.id];
    return words.map((each) => page.oneLine(each ?? "", 120)).find(Boolean) ?? "";
  }

  function limitOf(element) {
    return element.maxLength > 0 ? element.maxLength : 0;
  }

  function held(element) {
    return "value" in element ? element.value : page.cleaned(element.innerText ?? "");
  }

  page.show = (number) => {
    const element = kept.get(number);
    if (!element?.isConnected) return { done: false, why: "gone" };
    const calm = element.ownerDocument.defaultView.matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
    const ring = { outline: "4px solid #0b5cad", outlineOffset: "2px" };
    element.animate([ring, ring], { duration: 2000 });
    return { done: true, why: "" };
  };

  // Puts `text` into the field in place of what it holds. {done, why: "" | "gone" | "limit" | "refused", before}.
  page.insert = async (number, text) => {
    const element = kept.get(number);
    if (!element?.isConnected || !usable(element)) return { done: false, why: "gone", before: "" };
    const limit = limitOf(element);
    if (limit && text.length > limit) return { done: false, why: "limit", before: "" };
    const before = held(element);
    if ("value" in element) setValue(element, text);
    else await setContent(element, text);
    await new Promise((done) => setTimeout(done, SETTLE_MS));
    const done = same(held(element), text);
    return { done, why: done ? "" : "refused", before: before.slice(0, 20_000) };
  };

  function same(one, other) {
    const bare = (text) => text.replace(/\s+/g, " ").trim();
    return bare(one) === bare(other);
  }

  // The prototype's own setter, because frameworks put one of theirs on the element to tell typing from their own changes.
  function setValue(element, text) {
    const line = element.tagName === "INPUT" ? text.replace(/\s*\n\s*/g, " ") : text;
    element.focus({ preventScroll: true });
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), "value").set.call(element, line);
    const view = element.ownerDocument.defaultView;
    element.dispatchEvent(new view.InputEvent("input", { bubbles: true, composed: true, inputType: "insertReplacementText", data: line }));
    element.dispatchEvent(new view.Event("change", { bubbles: true }));
  }

  // An editor that handles pasting gets a paste; another gets what typing would do; the rest get paragraphs.
  async function setContent(element, text) {
    const document = element.ownerDocument;
    const view = document.defaultView;
    element.focus({ preventScroll: true });
    view.getSelection().selectAllChildren(element);
    const data = new view.DataTransfer();
    data.setData("text/plain", text);
    const paste = new view.ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true, composed: true });
    const handled = !element.dispatchEvent(paste);
    if (handled) await new Promise((done) => setTimeout(done, SETTLE_MS));
    if (same(held(element), text)) return;
    view.getSelection().selectAllChildren(element);
    if (document.execCommand("insertText", false, text) && same(held(element), text)) return;
    element.replaceChildren(...text.split("\n").map((line) => {
      const made = document.createElement("div");
      made.append(line || document.createElement("br"));
      return made;
    }));
    element.dispatchEvent(new view.InputEvent("input", { bubbles: true, composed: true, inputType: "insertFromPaste" }));
    element.dispatchEvent(new view.Event("change", { bubbles: true }));
  }
})();
