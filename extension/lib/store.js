// What this browser keeps: the server's address and token, the profile, choices. All of it in chrome.storage.local.

import { LONGEST, text } from "./bounds.js";

export const PROFILE = ["name", "summary", "current", "past", "skills", "qualifications", "other"];
export const ADDRESS = "http://127.0.0.1:8765";

export async function kept() {
  const all = await chrome.storage.local.get(["server", "profile", "choices", "recipe"]);
  return {
    server: { address: text(all.server?.address, 100) || ADDRESS, token: text(all.server?.token, 500) },
    profile: profileOf(all.profile),
    choices: all.choices && typeof all.choices === "object" ? all.choices : {},
    recipe: text(all.recipe, 100) || "cover-letter",
  };
}

export function profileOf(value) {
  return Object.fromEntries(PROFILE.map((name) => [name, text(value?.[name], LONGEST[name]).trim()]));
}

export function filled(profile) {
  return PROFILE.some((name) => profile[name]);
}

export const keep = (changes) => chrome.storage.local.set(changes);

export async function forget() {
  await chrome.storage.local.clear();
  await chrome.storage.session.clear();
}
