// A job advert from the page's structured data: schema.org JobPosting as JSON-LD, then as microdata.

(() => {
  const page = (globalThis.tunesmith ??= {});
  const MOST_SCRIPTS = 60;
  const LONGEST_SCRIPT = 600_000; // characters
  const MOST_ADVERTS = 12;
  const DEEPEST = 8;

  page.fromLinkedData = (document) => {
    const things = [];
    const named = new Map();
    let broken = 0;
    for (const script of [...document.querySelectorAll('script[type^="application/ld+json" i]')].slice(0, MOST_SCRIPTS)) {
      const data = parsed(script.textContent);
      if (data === undefined) broken += 1;
      else gather(data, things, named, 0);
    }
    const adverts = things.filter((thing) => typed(thing, "JobPosting")).slice(0, MOST_ADVERTS).map((thing) => advertOf(thing, named));
    return { adverts: adverts.filter((advert) => advert.title || advert.description), broken };
  };

  // Boards write line breaks into strings, comments around the data and commas before a bracket.
  function parsed(text) {
    if (text.length > LONGEST_SCRIPT) return undefined;
    const bare = text.replace(/^\s*(?:<!--|\/\/<!\[CDATA\[|<!\[CDATA\[)|(?:-->|\/\/\]\]>|\]\]>)\s*$/g, "");
    for (const attempt of [bare, bare.replace(/[\u0000-\u001f]+/g, " "), bare.replace(/[\u0000-\u001f]+/g, " ").replace(/,\s*([}\]])/g, "$1")]) {
      try {
        return JSON.parse(attempt);
      } catch {
        continue;
      }
    }
    return undefined;
  }

  function gather(data, things, named, depth) {
    if (depth > DEEPEST || things.length > 500 || data === null || typeof data !== "object") return;
    if (Array.isArray(data)) {
      for (const each of data.slice(0, 500)) gather(each, things, named, depth + 1);
      return;
    }
    things.push(data);
    if (typeof data["@id"] === "string" && Object.keys(data).length > 1) named.set(data["@id"], data);
    for (const key of ["@graph", "mainEntity", "mainEntityOfPage", "itemListElement", "item", "hiringOrganization", "about"]) {
      if (data[key]) gather(data[key], things, named, depth + 1);
    }
  }

  function typed(thing, type) {
    return [thing["@type"]].flat().some((each) => typeof each === "string" && each.split(/[/#:]/).pop() === type);
  }

  function advertOf(thing, named) {
    const description = page.linesOfMarkup(words(thing.description, named));
    const duties = page.linesOfMarkup(words(thing.responsibilities, named));
    const asked = ["qualifications", "skills", "experienceRequirements", "educationRequirements"]
      .map((key) => page.written(page.linesOfMarkup(words(thing[key], named)))).filter(Boolean);
    const requirements = [...new Set(asked)].join("\n") || page.requirements([...description, ...duties]);
    const said = page.written(description);
    const more = page.written(duties);
    return {
      title: plain(words(thing.title ?? thing.name, named)),
      company: plain(words(thing.hiringOrganization, named)),
      description: said.includes(more) ? said : `${said}\n\n${more}`,
      requirements,
      from: "JSON-LD",
    };
  }

  const plain = (markup) => page.oneLine(page.written(page.linesOfMarkup(markup)));

  // The words of a value, whatever its shape: text, number, list, thing with a name, reference to a thing.
  function words(value, named, depth = 0) {
    if (value === null || value === undefined || depth > 4) return "";
    if (typeof value === "string") return value;
    if (typeof value === "number") return String(value);
    if (Array.isArray(value)) return value.slice(0, 100).map((each) => words(each, named, depth + 1)).filter(Boolean).join("\n");
    if (typeof value !== "object") return "";
    const thing = named.get(value["@id"]) ?? value;
    if (Number.isFinite(thing.monthsOfExperience)) return `${thing.monthsOfExperience} months of experience`;
    return words(thing.name ?? thing["@value"] ?? thing.credentialCategory ?? thing.description ?? thing.legalName, named, depth + 1);
  }

  page.fromMicrodata = (document) => {
    const scopes = [...document.querySelectorAll("[itemscope][itemtype]")]
      .filter((scope) => /schema\.org\/JobPosting\b/.test(scope.getAttribute("itemtype")));
    return scopes.slice(0, MOST_ADVERTS).map(advertOfScope).filter((advert) => advert.title || advert.description);
  };

  function advertOfScope(scope) {
    const all = (name) => [...scope.querySelectorAll("[itemprop]")]
      .filter((each) => each.getAttribute("itemprop").split(/\s+/).includes(name) && owner(each) === scope);
    const lines = (...names) => names.flatMap((name) => all(name)).slice(0, 50).flatMap(linesOf);
    const company = all("hiringOrganization")[0];
    const named = company?.querySelector('[itemprop~="name"]') ?? company;
    const description = lines("description");
    const asked = lines("qualifications", "skills", "experienceRequirements", "educationRequirements");
    return {
      title: page.oneLine(page.written(lines("title").slice(0, 1))),
      company: named ? page.oneLine(page.written(linesOf(named).slice(0, 1))) : "",
      description: page.written([...description, ...lines("responsibilities")]),
      requirements: page.written(asked) || page.requirements(description),
      from: "microdata",
    };
  }

  function owner(property) {
    return property.parentElement?.closest("[itemscope]") ?? null;
  }

  function linesOf(element) {
    const content = element.getAttribute("content");
    return content === null ? page.lines(element) : page.linesOfMarkup(content);
  }
})();
