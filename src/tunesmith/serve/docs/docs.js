"use strict";

const at = (id) => document.getElementById(id);

function element(tag, text, properties = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  return Object.assign(node, properties);
}

function resolve(schema, spec) {
  const name = schema.$ref && schema.$ref.split("/").pop();
  return name ? spec.components.schemas[name] : schema;
}

function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeName).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return "list of " + typeName(schema.items || {});
  return schema.type || "any";
}

function fields(schema, spec) {
  const table = document.createElement("table");
  const resolved = resolve(schema, spec);
  for (const [name, property] of Object.entries(resolved.properties || {})) {
    const row = table.insertRow();
    row.append(element("td", name), element("td", typeName(property)));
    row.append(element("td", (resolved.required || []).includes(name) ? "required" : "", { className: "dim" }));
  }
  return table;
}

function operationBox(path, method, operation, spec) {
  const box = document.createElement("details");
  const head = document.createElement("summary");
  head.append(element("b", method.toUpperCase()), element("code", path), element("span", " " + (operation.description || "")));
  box.append(head);
  const request = operation.requestBody && operation.requestBody.content["application/json"];
  if (request) box.append(element("h3", "Request"), fields(request.schema, spec));
  const responses = document.createElement("table");
  for (const [status, details] of Object.entries(operation.responses)) {
    const row = responses.insertRow();
    row.append(element("td", status), element("td", details.description || ""));
  }
  box.append(element("h3", "Responses"), responses);
  const response = operation.responses["200"] && operation.responses["200"].content;
  const body = response && response["application/json"];
  if (body && body.schema) box.append(fields(body.schema, spec));
  return box;
}

async function show(token) {
  const alert = at("error");
  alert.hidden = true;
  at("operations").replaceChildren();
  try {
    const reply = await fetch("/openapi.json", { headers: { Authorization: "Bearer " + token } });
    const spec = await reply.json();
    if (!reply.ok) throw new Error(spec.error.message);
    for (const [path, operations] of Object.entries(spec.paths)) {
      for (const [method, operation] of Object.entries(operations)) at("operations").append(operationBox(path, method, operation, spec));
    }
    at("operations").append(element("h2", "OpenAPI document"), element("pre", JSON.stringify(spec, null, 1)));
  } catch (error) {
    alert.textContent = error.message;
    alert.hidden = false;
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  show(at("token").value.trim());
});
