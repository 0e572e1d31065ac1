// How long anything may be, in characters, and what a value from outside may look like.

export const LONGEST = {
  title: 200, company: 200, description: 20_000, requirements: 8_000, // of an advert
  name: 200, summary: 4_000, current: 8_000, past: 8_000, skills: 4_000, qualifications: 4_000, other: 8_000, // of a profile
  letter: 60_000, imported: 200_000, value: 40_000, system: 8_000,
};

// A string for certain, without what no text needs, and no longer than `most`.
export function text(value, most) {
  if (typeof value !== "string") return "";
  return value.replace(/\r\n?/g, "\n").replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g, "").slice(0, most);
}

export function whole(value, least, most) {
  return Number.isInteger(value) && value >= least && value <= most;
}

export function list(value, most) {
  return Array.isArray(value) ? value.slice(0, most) : [];
}

export function points(value) {
  return [...value].length; // characters as the server counts them
}
