// Building pages: whatever comes from a page, a file or the server goes in by textContent or value, never as markup.

export const at = (id) => document.getElementById(id);

export function make(tag, changes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), changes);
  made.append(...children);
  return made;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

const timers = new WeakMap();

// Says `text` once in a live region, again if it is the same.
export function tell(region, text) {
  clearTimeout(timers.get(region));
  region.textContent = "";
  if (text) timers.set(region, setTimeout(() => { region.textContent = text; }, 30));
}
