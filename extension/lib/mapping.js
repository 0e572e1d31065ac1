// Which of the advert's and the profile's texts goes into which field of the recipe.

import { points } from "./bounds.js";

export const SOURCES = {
  "advert.title": "Advert: title", "advert.company": "Advert: company", "advert.requirements": "Advert: requirements", "advert.description": "Advert: description",
  "profile.name": "You: name", "profile.summary": "You: about you", "profile.current": "You: current work", "profile.past": "You: past work",
  "profile.skills": "You: skills", "profile.qualifications": "You: qualifications", "profile.other": "You: other",
  typed: "Typed here",
};

const GUESSES = [ // the first that fits a field's name
  [/preferred|requirement|required|wanted|must.have/, "advert.requirements"],
  [/company|employer|organi[sz]ation|firm/, "advert.company"],
  [/(job|position|role).*(title|name)|^(job|position|role|title)$/, "advert.title"],
  [/description|advert|posting/, "advert.description"],
  [/applicant|candidate|^name|(your|full).name/, "profile.name"],
  [/past|previous|former/, "profile.past"],
  [/current|present/, "profile.current"],
  [/experience|work/, "profile.past"],
  [/skill/, "profile.skills"],
  [/qualification|education|degree|certificate/, "profile.qualifications"],
  [/summary|about|reason|motivation/, "profile.summary"],
];

export function guess(name) {
  return GUESSES.find(([pattern]) => pattern.test(name.toLowerCase()))?.[1] ?? "typed";
}

// The source of each field: as chosen before for this recipe, otherwise by the field's name.
export function sources(recipe, choices) {
  const chosen = choices[recipe.name] ?? {};
  return Object.fromEntries(recipe.fields.map((field) => [field.name, Object.hasOwn(SOURCES, chosen[field.name] ?? "") ? chosen[field.name] : guess(field.name)]));
}

// {text, left}: the source's text as the field takes it, and how many characters did not fit.
export function value(field, source, advert, profile) {
  const [whose, what] = source.split(".");
  let found = (whose === "advert" ? advert : profile)?.[what] ?? "";
  if (source === "advert.requirements" && !found) found = advert?.description ?? ""; // an advert without such a section
  return fitted(field.kind === "text" ? joined(found) : found.trim(), field.longest);
}

function joined(text) {
  const lines = text.split("\n").map((line) => line.replace(/^\s*[-•*]\s+/, "").trim()).filter(Boolean);
  return lines.map((line, index) => (index < lines.length - 1 && !/[.,;:!?]$/.test(line) ? `${line};` : line)).join(" ");
}

// Cut where a line or a sentence ends, if one ends in the second half.
export function fitted(text, longest) {
  const all = [...text];
  if (all.length <= longest) return { text, left: 0 };
  const piece = all.slice(0, longest).join("");
  const end = Math.max(piece.lastIndexOf("\n"), piece.lastIndexOf(". ") + 1, piece.lastIndexOf("; ") + 1);
  const word = piece.lastIndexOf(" ");
  const kept = (end > piece.length / 2 ? piece.slice(0, end) : word > 0 ? piece.slice(0, word) : piece).trim();
  return { text: kept, left: all.length - points(kept) };
}

// What keeps the fields from being sent: [{name, why}].
export function wrong(recipe, values) {
  return recipe.fields.flatMap((field) => {
    const text = (values[field.name] ?? "").trim();
    if (field.required && !text) return [{ name: field.name, why: "is needed" }];
    const over = points(text) - field.longest;
    return over > 0 ? [{ name: field.name, why: `is ${over.toLocaleString("en")} ${over === 1 ? "character" : "characters"} too long` }] : [];
  });
}
