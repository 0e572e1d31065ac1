"use strict";

const at = (id) => document.getElementById(id);

function made(kind, text, more = {}) {
  const element = document.createElement(kind);
  element.textContent = text;
  return Object.assign(element, more);
}

function named(schema, whole) {
  const name = schema.$ref && schema.$ref.split("/").pop();
  return name ? whole.components.schemas[name] : schema;
}

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return "list of " + kind(schema.items || {});
  return schema.type || "anything";
}

function fields(schema, whole) {
  const table = document.createElement("table");
  const plain = named(schema, whole);
  for (const [name, each] of Object.entries(plain.properties || {})) {
    const row = table.insertRow();
    row.append(made("td", name), made("td", kind(each)));
    row.append(made("td", (plain.required || []).includes(name) ? "needed" : "", { className: "dim" }));
  }
  return table;
}

function way(path, method, told, whole) {
  const box = document.createElement("details");
  const head = document.createElement("summary");
  head.append(made("b", method.toUpperCase()), made("code", path), made("span", " " + (told.description || "")));
  box.append(head);
  const asked = told.requestBody && told.requestBody.content["application/json"];
  if (asked) box.append(made("h3", "Sent"), fields(asked.schema, whole));
  const answers = document.createElement("table");
  for (const [status, each] of Object.entries(told.responses)) {
    const row = answers.insertRow();
    row.append(made("td", status), made("td", each.description || ""));
  }
  box.append(made("h3", "Answered"), answers);
  const given = told.responses["200"] && told.responses["200"].content;
  const body = given && given["application/json"];
  if (body && body.schema) box.append(fields(body.schema, whole));
  return box;
}

async function show(token) {
  const trouble = at("trouble");
  trouble.hidden = true;
  at("ways").replaceChildren();
  try {
    const answer = await fetch("/openapi.json", { headers: { Authorization: "Bearer " + token } });
    const whole = await answer.json();
    if (!answer.ok) throw new Error(whole.error.message);
    for (const [path, ways] of Object.entries(whole.paths)) {
      for (const [method, told] of Object.entries(ways)) at("ways").append(way(path, method, told, whole));
    }
    at("ways").append(made("h2", "All of it"), made("pre", JSON.stringify(whole, null, 1)));
  } catch (error) {
    trouble.textContent = error.message;
    trouble.hidden = false;
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  show(at("token").value.trim());
});
