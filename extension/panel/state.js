// What the panel knows. Written by panel.js and the parts beside it, read by all.

export const state = {
  kept: null, // of lib/store.js: server, profile, choices, recipe
  ready: false, // the server answered and knows this browser
  recipe: null, // as lib/server.js reads it
  advert: { title: "", company: "", description: "", requirements: "", from: "" },
  letter: "",
  claims: [], // as lib/letter.js keeps them
  writing: null, // an AbortController while a letter is being written
  tab: null, // the tab that the icon was clicked on
  clicked: 0, // when, in ms
};
