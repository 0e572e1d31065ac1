// A profile from a JSON Resume (https://jsonresume.org/schema) or from pasted text, and back into a JSON Resume.

import { LONGEST, list, text } from "./bounds.js";
import { PROFILE, profileOf } from "./store.js";

const ONGOING = /\b(present|current(ly)?|now|today|ongoing|since|heute|aktuell|seit|laufend|aujourd['’]hui|actuel(lement)?|depuis|actualidad|actualmente|presente|desde)\b/i;
const HEADINGS = [
  ["work", /^(work|professional|employment|career)?\s*(experience|history|employment)$|^work$|^(beruf(serfahrung|licher werdegang|spraxis)|werdegang)$|^(expériences?( professionnelles?)?|parcours professionnel)$|^(experiencia( laboral| profesional)?)$/i],
  ["current", /^(current|present)\b.*|^aktuelle (tätigkeit|stelle)$|^poste actuel$|^puesto actual$/i],
  ["past", /^(past|previous|former|earlier)\b.*|^frühere (tätigkeiten|stellen)$|^postes précédents$|^puestos anteriores$/i],
  ["skills", /^((key|core|technical|professional) )?skills?(ets?)?$|^(kenntnisse|fähigkeiten|kompetenzen)( und .*)?$|^compétences.*$|^(habilidades|competencias|conocimientos|aptitudes)$/i],
  ["qualifications", /^(education|qualifications?|academic background|training|certificat(es|ions)|education (and|&) .*)$|^((aus)?bildung.*|qualifikationen|zertifikate|studium)$|^(formations?|diplômes?|certifications?|études)$|^(formación( académica)?|educación|títulos|certificados|estudios)$/i],
  ["summary", /^(profile|summary|about( me)?|objective|personal statement)$|^(profil|über mich|kurzprofil)$|^(à propos|résumé|profil)$|^(perfil|sobre mí|resumen)$/i],
  ["other", /^(languages?|sprachen|langues|idiomas|interests?|hobbies|interessen|intérêts|volunteer(ing| work)?|projects?|publications?|awards?|references?|contact( details)?)$/i],
];

const clean = (value) => text(value, 4000).replace(/\s+/g, " ").trim();
const year = (date) => clean(date).slice(0, 10);

// {profile, notes}: what was understood, and what a person should look at.
export function imported(source) {
  const read = text(source, LONGEST.imported).trim();
  if (!read) return { profile: profileOf({}), notes: ["The text is empty."] };
  if (read.startsWith("{")) {
    let resume = null;
    try {
      resume = JSON.parse(read);
    } catch {
      return { profile: profileOf({}), notes: ["This begins like JSON but is not valid JSON. Nothing was imported."] };
    }
    return fromResume(resume);
  }
  return fromText(read);
}

export function fromResume(resume) {
  const own = resume?.meta?.tunesmith;
  if (own && typeof own === "object") return bounded(Object.fromEntries(PROFILE.map((name) => [name, text(own[name], LONGEST.imported)])));
  const basics = resume?.basics && typeof resume.basics === "object" ? resume.basics : {};
  const work = list(resume?.work, 100);
  const now = work.filter((job) => ongoing(job?.endDate));
  const education = list(resume?.education, 50).map((each) => [dashed([each?.studyType, each?.area], " in "), clean(each?.institution), years(each)].filter(Boolean).join(", "));
  const papers = [...list(resume?.certificates, 50), ...list(resume?.certifications, 50), ...list(resume?.awards, 50)]
    .map((each) => [clean(each?.name ?? each?.title), clean(each?.issuer ?? each?.awarder), year(each?.date)].filter(Boolean).join(", "));
  const skills = list(resume?.skills, 100).map((each) => dashed([each?.name, list(each?.keywords, 50).map(clean).join(", ")], ": "));
  const languages = list(resume?.languages, 30).map((each) => [clean(each?.language), clean(each?.fluency)].filter(Boolean).join(", "));
  const other = [...list(resume?.volunteer, 30).map(job), ...list(resume?.projects, 30).map((each) => job({ ...each, position: each?.name, name: "" }))];
  return bounded({
    name: clean(basics.name),
    summary: [clean(basics.label), clean(basics.summary)].filter(Boolean).join(". ").replace("..", "."),
    current: lines(now.map(job)),
    past: lines(work.filter((each) => !now.includes(each)).map(job)),
    skills: lines(skills),
    qualifications: lines([...education, ...papers]),
    other: lines([...languages.map((each) => `Language: ${each}`), ...other]),
  });
}

const lines = (all) => all.filter(Boolean).join("\n");
const dashed = (parts, by) => parts.map((each) => clean(each)).filter(Boolean).join(by);

function ongoing(date) {
  const said = clean(date);
  return !said || ONGOING.test(said) || (/^\d{4}/.test(said) && new Date(said) > new Date());
}

function years(each) {
  const [from, to] = [year(each?.startDate), year(each?.endDate)];
  if (from && to) return `${from} to ${to}`;
  return to || (from && `since ${from}`);
}

function job(each) {
  const place = clean(each?.name ?? each?.company ?? each?.organization);
  const title = [clean(each?.position), place].filter(Boolean).join(" at ");
  const did = [clean(each?.summary ?? each?.description), ...list(each?.highlights, 30).map(clean)].filter(Boolean).join("; ");
  return [[title, years(each)].filter(Boolean).join(", "), did].filter(Boolean).join(": ");
}

// Pasted text: sections by their headings in four languages; what has no place goes to "other", nothing is lost.
export function fromText(source) {
  const found = Object.fromEntries([...PROFILE, "work"].map((name) => [name, []]));
  const all = source.split("\n").map((line) => line.replace(/\s+/g, " ").trim()).filter(Boolean);
  let section = "";
  let headings = 0;
  for (const line of all) {
    const inline = /^([^:]{3,40}):\s+(\S.*)$/.exec(line);
    const [name, rest] = sectionOf(line.replace(/[:：]$/, "")) ? [sectionOf(line.replace(/[:：]$/, "")), ""] : [inline && sectionOf(inline[1]), inline?.[2] ?? ""];
    if (name) {
      [section, headings] = [name, headings + 1];
      if (rest) found[section].push(rest);
    } else if (!section && !found.name.length && nameLike(line)) found.name.push(line.replace(/^name:\s*/i, ""));
    else found[section || "other"].push(line);
  }
  for (const entry of entries(found.work)) found[ONGOING.test(entry.split("\n")[0]) ? "current" : "past"].push(entry.replace(/\n/g, "; "));
  const made = bounded(Object.fromEntries(PROFILE.map((name) => [name, found[name].map((line) => line.replace(/^[-•*–]\s+/, "")).join("\n")])));
  if (!headings) made.notes.unshift("No section headings such as Experience, Education or Skills were found: everything is under Other. Move it to where it belongs.");
  else if (made.profile.other) made.notes.push("Lines that fit no section are under Other.");
  return made;
}

function sectionOf(line) {
  return line.length <= 45 ? HEADINGS.find(([, pattern]) => pattern.test(line.trim()))?.[0] ?? "" : "";
}

function nameLike(line) {
  const bare = line.replace(/^name:\s*/i, "");
  return bare.length <= 60 && !/[@\d:/]/.test(bare) && /^\p{Lu}[\p{L}.'’-]*(?: (?:von|van|de|da|del|della|der|den|la|le|al|bin|y|e|\p{Lu}[\p{L}.'’-]*)){1,4}(?<!\.)$/u.test(bare) && !/^(curriculum vitae|lebenslauf|resume|résumé)$/i.test(bare);
}

// Lines with a year, or without a bullet, begin an entry; bullets belong to the entry before.
function entries(all) {
  const found = [];
  for (const line of all) {
    if (found.length && (/^[-•*–]\s/.test(line) || (/^[\p{Ll}(]/u.test(line) && !/\d{4}/.test(line)))) found.push(`${found.pop()}\n${line.replace(/^[-•*–]\s+/, "")}`);
    else if (found.length && /^\(?(\w+\.? )?\d{4}\b.{0,30}$/.test(line) && !/\d{4}/.test(found.at(-1))) found.push(found.pop().replace(/^([^\n]*)/, `$1, ${line}`));
    else found.push(line);
  }
  return found;
}

function bounded(raw) {
  const profile = profileOf(raw);
  const cut = PROFILE.filter((name) => (raw[name] ?? "").trim().length > LONGEST[name]);
  return { profile, notes: cut.length ? [`Too long and cut: ${cut.join(", ")}.`] : [] };
}

// A JSON Resume; `meta.tunesmith` holds the fields as they stand, so that they come back exactly.
export function exported(profile) {
  const each = (name, make) => profile[name].split("\n").map((line) => line.trim()).filter(Boolean).map(make);
  return {
    $schema: "https://raw.githubusercontent.com/jsonresume/resume-schema/v1.0.0/schema.json",
    basics: { name: profile.name, summary: profile.summary },
    work: [...each("current", (line) => ({ summary: line })), ...each("past", (line) => ({ summary: line }))],
    education: each("qualifications", (line) => ({ area: line })),
    skills: each("skills", (line) => ({ name: line })),
    meta: { tunesmith: profile },
  };
}
