// The advert on this page: structured data first, then what a reader sees. Everything returned is plain, bounded text.

(() => {
  const page = (globalThis.tunesmith ??= {});
  const BOUNDS = { title: 200, company: 200, description: 20_000, requirements: 8_000 };
  const ENOUGH = 3; // points that make a text an advert
  const STILL_MS = 400; // without a change, a page counts as rendered
  const LATEST_MS = 6_000;
  const SELECTED = 200; // characters; less was selected by accident

  // Lines under headings that ask for something, up to the next heading of the same rank.
  page.requirements = (lines) => {
    const found = [];
    let rank = 0;
    for (const line of lines) {
      if (line.level && (!rank || line.level <= rank)) rank = page.REQUIREMENTS.test(line.text.toLowerCase()) ? line.level : 0;
      else if (rank) found.push(line);
    }
    return page.written(found);
  };

  // Where most of the text stands: down from the body for as long as one child holds most of what its parent holds.
  page.mainBlock = (document) => {
    const weights = new Map();
    for (const line of page.lines(document.body, (element) => !page.around(element))) {
      const weight = line.text.length * (line.place.closest?.("a") ? 0.1 : 1);
      for (let element = line.place; element; element = element.parentElement ?? element.getRootNode().host) {
        weights.set(element, (weights.get(element) ?? 0) + weight);
      }
    }
    let best = document.body;
    for (;;) {
      const children = [...best.children, ...(best.shadowRoot?.children ?? [])];
      const next = children.find((child) => (weights.get(child) ?? 0) >= 0.6 * weights.get(best) && !/^(UL|OL|DL|TABLE|P|PRE)$/.test(child.tagName));
      if (!next) return best;
      best = next;
    }
  };

  function points(lines, title) {
    const text = `${title}\n${page.written(lines)}`.toLowerCase();
    const asks = lines.some((line) => line.level && page.REQUIREMENTS.test(line.text.toLowerCase()));
    return (asks ? 2 : 0) + page.KINDS.filter((kind) => kind.test(text)).length + (text.length > 250 ? 0 : -2);
  }

  page.fromText = (document) => {
    if (!document.body) return null;
    const block = page.mainBlock(document);
    const lines = page.lines(block, (element) => !page.around(element));
    const heading = titleOf(document, block);
    const split = page.AT.exec(heading);
    const score = points(lines, heading);
    return {
      score,
      advert: {
        title: page.oneLine(split ? split[1] : heading),
        company: page.oneLine(companyOf(document, lines) || (split ? split[2] : "")),
        description: page.written(lines),
        requirements: page.requirements(lines),
        from: "text",
      },
    };
  };

  function titleOf(document, block) {
    const shown = (element) => page.oneLine(page.lines(element).map((line) => line.text).join(" "));
    const inside = [...block.querySelectorAll("h1, h2")].find((each) => each.tagName === "H1") ?? null;
    const first = [...document.querySelectorAll("h1")].map((each) => [each, shown(each)]).find(([each, text]) => text && !page.around(each));
    if (inside && shown(inside)) return shown(inside);
    if (first) return first[1];
    const told = document.querySelector('meta[property="og:title"]')?.content || document.title;
    return page.oneLine(told).split(/\s+[|–—·]\s+/)[0];
  }

  function companyOf(document, lines) {
    const all = page.lines(document.body, (element) => !/^(NAV|FOOTER)$/.test(element.tagName)).slice(0, 400);
    for (const line of [...lines, ...all]) {
      const named = page.COMPANY_LINE.exec(line.text);
      if (named) return named[1];
    }
    const label = all.findIndex((line) => page.COMPANY.test(line.text));
    if (label >= 0 && all[label + 1]?.text.length <= 120) return all[label + 1].text;
    const marked = document.querySelector('[class*="company" i], [class*="employer" i], [data-testid*="company" i], [rel="author"]');
    const text = marked && !marked.closest("nav, footer, header > nav") ? page.oneLine(page.written(page.lines(marked).slice(0, 1))) : "";
    return text.length <= 120 ? text : "";
  }

  function bounded(advert) {
    const made = { from: advert.from, clipped: [] };
    for (const [name, most] of Object.entries(BOUNDS)) {
      const text = page.cleaned(advert[name] ?? "");
      if (text.length > most) made.clipped.push(name);
      made[name] = text.length > most ? clip(text, most) : text;
    }
    return made;
  }

  function clip(text, most) {
    const piece = text.slice(0, most);
    const end = Math.max(piece.lastIndexOf("\n"), piece.lastIndexOf(". ") + 1);
    return (end > most / 2 ? piece.slice(0, end) : piece).trim();
  }

  function selected(documents) {
    const text = documents.map((each) => page.cleaned(each.getSelection?.()?.toString() ?? "")).find((each) => each.length >= SELECTED);
    if (!text) return null;
    const lines = page.linesOfMarkup(text.replace(/</g, "&lt;").replace(/\n/g, "<br>"));
    return { title: titleOf(documents[0], documents[0].body), company: "", description: text, requirements: page.requirements(lines), from: "selection" };
  }

  // {found, adverts: [{title, company, description, requirements, from, clipped}], notes, foreign}: with `found` false the
  // one advert is what the page says at all, for a person to decide about.
  page.read = (document) => {
    const { found: documents, foreign } = page.documents(document);
    const notes = [];
    const chosen = selected(documents);
    if (chosen) return told(true, [chosen], notes, foreign);
    const linked = documents.map(page.fromLinkedData);
    if (linked.some((each) => each.broken)) notes.push("broken data");
    const structured = linked.flatMap((each) => each.adverts);
    const marked = structured.length ? [] : documents.flatMap(page.fromMicrodata);
    const adverts = ownFirst(whole([...structured, ...marked], documents), documents[0]);
    if (adverts.length) return told(true, adverts, notes, foreign);
    const texts = documents.map(page.fromText).filter(Boolean).sort((one, other) => other.score - one.score);
    if (!texts.length) return told(false, [], notes, foreign);
    return told(texts[0].score >= ENOUGH, [texts[0].advert], notes, foreign);
  };

  // Some boards give a title alone as data; the text then comes from the page.
  function whole(adverts, documents) {
    if (adverts.length !== 1 || adverts[0].description.length >= 80) return adverts;
    const read = documents.map(page.fromText).filter(Boolean).sort((one, other) => other.score - one.score)[0]?.advert;
    if (!read) return adverts;
    const [advert] = adverts;
    return [{ ...advert, company: advert.company || read.company, description: read.description, requirements: advert.requirements || read.requirements }];
  }

  function ownFirst(adverts, document) {
    const heading = page.oneLine(document.querySelector("h1")?.textContent ?? document.title).toLowerCase();
    const own = (advert) => (advert.title && heading.includes(advert.title.toLowerCase()) ? 0 : 1);
    return adverts.map((advert, index) => [own(advert), index, advert]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((each) => each[2]);
  }

  function told(found, adverts, notes, foreign) {
    return { found, adverts: adverts.map(bounded), notes, foreign };
  }

  // Reads when the page has stood still for a moment; waits longer, up to a limit, where no advert is there yet.
  page.readWhenStill = async (document, still = STILL_MS, latest = LATEST_MS) => {
    const began = performance.now();
    for (;;) {
      const rest = latest - (performance.now() - began);
      await quiet(document, Math.min(still, rest), rest);
      const result = page.read(document);
      const late = performance.now() - began >= latest - 50;
      if (late || (result.found && ready(document, result))) return { ...result, waited: Math.round(performance.now() - began) };
    }
  };

  // Structured data is complete once it is there; a text may still grow while something says that it is loading.
  function ready(document, result) {
    if (result.adverts[0].from !== "text") return true;
    return document.readyState === "complete" && !document.querySelector('[aria-busy="true"], [class*="skeleton" i]');
  }

  function quiet(document, still, latest) {
    return new Promise((done) => {
      const roots = page.documents(document).found;
      const finish = () => { clearTimeout(calm); clearTimeout(end); for (const each of watchers) each.disconnect(); done(); };
      let calm = setTimeout(finish, Math.max(0, still));
      const end = setTimeout(finish, Math.max(0, latest));
      const watchers = roots.map((root) => new MutationObserver(() => { clearTimeout(calm); calm = setTimeout(finish, still); }));
      watchers.forEach((watcher, index) => watcher.observe(roots[index], { childList: true, subtree: true, characterData: true }));
    });
  }
})();
