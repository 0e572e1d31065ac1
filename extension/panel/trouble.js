// What went wrong, said once, with the one thing to do about it.

import { at } from "../lib/dom.js";

let timer = 0;

// `again` is called by the button; `label` is its text. For a busy server the seconds are counted down.
export function trouble(error, label = "", again = null) {
  clearInterval(timer);
  at("trouble-text").textContent = error.message;
  at("trouble").dataset.kind = error.kind ?? "page";
  at("trouble-do").hidden = !again;
  at("trouble-do").disabled = false;
  at("trouble-do").textContent = label;
  at("trouble-do").onclick = () => { calm(); again(); };
  at("trouble").hidden = false;
  at("trouble").scrollIntoView({ block: "nearest" });
  if (error.wait) countDown(error.wait, label);
}

function countDown(seconds, label) {
  const until = Date.now() + seconds * 1000;
  const step = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    at("trouble-do").disabled = left > 0;
    at("trouble-do").textContent = left > 0 ? `${label} (in ${left} s)` : label;
    if (left <= 0) clearInterval(timer);
  };
  at("trouble-text").textContent += ` It asks for ${seconds} s of patience.`;
  step();
  timer = setInterval(step, 500);
}

// Takes the trouble away; with `page` true only one of the page, with false only one of the server.
export function calm(page = null) {
  if (page !== null && (at("trouble").dataset.kind === "page") !== page) return;
  clearInterval(timer);
  at("trouble").hidden = true;
}
