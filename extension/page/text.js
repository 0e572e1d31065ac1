// What a reader sees of a page, as lines. Runs in the page's tab, apart from the page's own scripts; it changes nothing.

(() => {
  const page = (globalThis.tunesmith ??= {});
  const MOST_NODES = 60_000; // a page may be endless
  const DEEPEST = 400;
  const LONGEST = 60_000; // characters
  const NOT_TEXT = new Set("SCRIPT STYLE NOSCRIPT TEMPLATE SVG CANVAS VIDEO AUDIO OBJECT EMBED SELECT TEXTAREA INPUT BUTTON DIALOG".split(" "));
  const BLOCKS = new Set(("ADDRESS ARTICLE ASIDE BLOCKQUOTE BODY DD DETAILS DIV DL DT FIELDSET FIGURE FOOTER FORM H1 H2 H3 H4 H5 H6 HEADER "
    + "HR LI MAIN NAV OL P PRE SECTION SUMMARY TABLE TBODY TD TFOOT TH THEAD TR UL").split(" "));
  const AROUND = new Set("NAV FOOTER ASIDE".split(" "));
  const ROLES_AROUND = new Set(["navigation", "contentinfo", "complementary", "banner", "dialog", "alertdialog", "search"]);
  const NAMES_AROUND = /cookie|consent|gdpr|newsletter|related|similar|recommend|breadcrumb|sidebar|share-/i;
  // Invisible characters carry text that a model reads and a person does not see: controls, zero width, direction
  // overrides, Unicode tags. U+200C and U+200D stay, which Persian and Indic scripts need.
  const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\u{e0000}-\u{e0fff}]/gu;
  const MARKS = /^\s*(?:[-–—•·●▪◦‣*✓✔➢➤]|\d{1,2}[.)])\s+/u;

  const upper = (element) => String(element.tagName).toUpperCase();

  page.cleaned = (text) => String(text).replace(/\r\n?/g, "\n").replace(UNSEEN, "").replace(/[^\S\n]+/g, " ").replace(/ ?\n ?/g, "\n").replace(/\n{3,}/g, "\n\n").trim();

  page.oneLine = (text, longest = 200) => page.cleaned(text).replace(/\s+/g, " ").slice(0, longest);

  function styled(element) {
    return element.ownerDocument.defaultView?.getComputedStyle(element) ?? null;
  }

  function hidden(element, style) {
    if (element.hidden || element.getAttribute("aria-hidden") === "true") return true;
    const seen = style ?? element.style ?? {}; // markup from data has no window, only what its tags say
    return seen.display === "none" || seen.opacity === "0" || /^0(px|em|rem|%|pt)?$/.test(seen.fontSize) || (!style && seen.visibility === "hidden");
  }

  function block(element, style) {
    if (!style) return BLOCKS.has(upper(element));
    return !/^(inline|contents|ruby|none)/.test(style.display) || upper(element) === "LI";
  }

  // What stands around an advert: menus, footers, cookie notices, other adverts.
  page.around = (element) => AROUND.has(upper(element)) || ROLES_AROUND.has(element.getAttribute("role"))
    || NAMES_AROUND.test(`${element.id} ${element.getAttribute("class") ?? ""}`);

  function level(element) {
    const tag = upper(element);
    if (/^H[1-6]$/.test(tag)) return Number(tag[1]);
    if (element.getAttribute("role") === "heading") return Math.min(6, Math.max(1, Number(element.getAttribute("aria-level")) || 2));
    return tag === "DT" || tag === "SUMMARY" ? 7 : 0;
  }

  // A short line that is bold throughout or ends in a colon works as a heading.
  function seemsHeading(line) {
    if (line.item || line.text.length > 80) return 0;
    if (line.bold === line.letters && line.letters > 2) return 7;
    return /[:：]$/.test(line.text) ? 8 : 0;
  }

  page.documentOf = (frame) => {
    try {
      return frame.contentDocument; // null or an error where it is another site's
    } catch {
      return null;
    }
  };

  // The lines under `root`: {text, level (0, or a heading's), item, place (element)}. `keep` may leave an element out.
  page.lines = (root, keep = () => true, frames = false) => {
    const found = [];
    let nodes = 0;
    let characters = 0;
    let line = { text: "", bold: 0, letters: 0 };
    let marked = { level: 0, item: false };

    function end(place) {
      const text = page.oneLine(line.text, 4000);
      if (text && characters < LONGEST) {
        const made = { text: text.replace(MARKS, ""), item: marked.item || MARKS.test(text), level: marked.level, bold: line.bold, letters: line.letters, place };
        made.level ||= seemsHeading(made);
        if (made.text) found.push(made);
        characters += text.length;
      }
      line = { text: "", bold: 0, letters: 0 };
    }

    function add(text, style, tags) {
      line.text += text;
      const letters = text.replace(/[\s:：]/g, "").length;
      line.letters += letters;
      if (tags.bold || Number(style?.fontWeight) >= 600) line.bold += letters;
    }

    function walk(node, parent, tags, depth) {
      if (++nodes > MOST_NODES || depth > DEEPEST || characters >= LONGEST) return;
      if (node.nodeType === 3) {
        if (!parent?.style || !/hidden|collapse/.test(parent.style.visibility)) {
          const pieces = parent?.style && /^pre/.test(parent.style.whiteSpace) ? node.nodeValue.split("\n") : [node.nodeValue];
          pieces.forEach((piece, index) => { if (index) end(parent.element); add(piece, parent?.style, tags); });
        }
        return;
      }
      if (node.nodeType !== 1) return;
      const tag = upper(node);
      if (tag === "BR") return end(parent?.element ?? node);
      if (NOT_TEXT.has(tag)) return;
      const style = styled(node);
      if (hidden(node, style) || !keep(node)) return;
      const own = { style, element: node };
      if (tag === "IFRAME" || tag === "FRAME") {
        const inner = frames ? page.documentOf(node)?.body : null;
        if (inner) { end(node); walk(inner, own, tags, depth + 1); end(node); }
        return;
      }
      const within = { bold: tags.bold || tag === "B" || tag === "STRONG" };
      const apart = block(node, style);
      const outer = marked;
      if (apart) {
        end(parent?.element ?? node);
        marked = { level: level(node) || outer.level, item: tag === "LI" || (outer.item && !level(node)) };
      }
      for (const child of children(node)) walk(child, own, within, depth + 1);
      if (apart) { end(node); marked = outer; }
    }

    walk(root, null, { bold: false }, 0);
    end(root);
    return found;
  };

  function children(node) {
    if (node.shadowRoot) return node.shadowRoot.childNodes;
    if (upper(node) === "SLOT" && node.assignedNodes().length) return node.assignedNodes();
    return node.childNodes;
  }

  page.written = (lines) => page.cleaned(lines.map((line, index) => {
    const gap = line.level && index ? "\n" : "";
    return gap + (line.item && !line.level ? `- ${line.text}` : line.text);
  }).join("\n"));

  // Markup from structured data, read in a document of its own: it has no window, runs nothing and loads nothing.
  page.linesOfMarkup = (markup) => {
    let text = String(markup).slice(0, 4 * LONGEST);
    for (let turn = 0; turn < 2 && /<\/?[a-z][^>]*>|&[a-z#0-9]+;/i.test(text); turn++) { // often escaped twice
      const parsed = new DOMParser().parseFromString(text, "text/html");
      const lines = page.lines(parsed.body);
      text = page.written(lines);
      if (!/<(p|br|li|ul|div|h\d)\b/i.test(text)) return lines;
    }
    return text.split("\n").map((each) => page.cleaned(each)).filter(Boolean).map((each) => {
      const made = { text: each.replace(MARKS, ""), item: MARKS.test(each), level: 0, bold: 0, letters: each.length, place: null };
      made.level = seemsHeading(made);
      return made;
    });
  };

  // Every document of the tab that can be read: the page's and those of frames of the same site; and what cannot be.
  page.documents = (document) => {
    const found = [];
    const foreign = [];
    (function look(from, depth) {
      if (found.length >= 30 || depth > 4) return;
      found.push(from);
      for (const frame of from.querySelectorAll("iframe, frame")) {
        const inner = page.documentOf(frame);
        if (inner?.body) look(inner, depth + 1);
        else if (frame.clientWidth > 250 && frame.clientHeight > 200) foreign.push(page.oneLine(hostOf(frame.src), 100));
      }
    })(document, 0);
    return { found, foreign: [...new Set(foreign.filter(Boolean))].slice(0, 5) };
  };

  function hostOf(address) {
    try {
      return new URL(address).host;
    } catch {
      return "";
    }
  }
})();
