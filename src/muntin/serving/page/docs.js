// SPDX-License-Identifier: Apache-2.0
/** The description of the API as a page: routes, parameters, bodies, answers, examples to copy. */

import { curlExamples } from "./curl.js";
import { fillTexts, say } from "./texts.js";

const part = (id) => document.getElementById(id);

/** Make an element; children are elements or texts. */
function make(tag, values = {}, ...children) {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Replace `$ref` of a schema by what it names. */
function resolve(schema, document_) {
  const path = schema?.$ref?.split("/").slice(1) ?? [];
  return path.length ? path.reduce((value, key) => value?.[key], document_) ?? {} : schema ?? {};
}

/** Text whose `code` is marked by backticks, in paragraphs. */
function paragraphs(text) {
  return text.split(/\n\s*\n/).map((one) => make("p", {}, ...one.split("`").map(
    (piece, number) => (number % 2 ? make("code", {}, piece) : piece),
  )));
}

/** A path that goes on in another line before a slash, and nowhere else. */
function breakable(path) {
  return path.split(/(?=\/)/).flatMap((part, number) => (number ? [make("wbr"), part] : [part]));
}

function typeOf(schema, document_) {
  const known = resolve(schema, document_);
  if (known.anyOf) return known.anyOf.map((one) => typeOf(one, document_)).join(" | ");
  if (known.enum) return known.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (known.type === "array") return `[${typeOf(known.items, document_)}]`;
  const limits = ["minimum", "maximum"].filter((name) => name in known)
    .map((name) => `${name === "minimum" ? ">=" : "<="} ${known[name]}`);
  const parts = [known.type ?? "any", known.format && `(${known.format})`, ...limits];
  return parts.filter(Boolean).join(" ");
}

function table(rows) {
  return make("table", {}, make("tbody", {}, ...rows.map(
    ([name, type, text]) => make("tr", {},
      make("td", {}, make("code", {}, name)), make("td", {}, type), make("td", {}, text)),
  )));
}

function propertiesOf(schema, document_) {
  let known = resolve(schema, document_);
  if (known.type === "array") known = resolve(known.items, document_);
  const required = known.required ?? [];
  return Object.entries(known.properties ?? {}).map(([name, property]) => {
    const text = [required.includes(name) ? say("docs_required") : "", property.description ?? ""];
    return [name, typeOf(property, document_), text.filter(Boolean).join(". ")];
  });
}

function example({ title, command }) {
  const button = make("button", { type: "button" }, say("docs_copy"));
  button.addEventListener("click", async () => {
    // Browsers keep the clipboard from pages that came without encryption from another machine.
    if (!navigator.clipboard) {
      getSelection().selectAllChildren(code);
      return;
    }
    await navigator.clipboard.writeText(command);
    button.textContent = say("docs_copied");
    setTimeout(() => { button.textContent = say("docs_copy"); }, 2000);
  });
  const code = make("pre", { tabIndex: 0 }, make("code", {}, command));
  const box = make("div", { className: "example" }, code, button);
  return title ? [make("h3", {}, title), box] : [box];
}

function describe(operation, document_, context) {
  const { method, path, place } = operation;
  const badge = make("span", { className: "method" }, method.toUpperCase());
  badge.dataset.method = method;
  const article = make("article", { id: place }, make("h2", {}, badge, path));
  const text = operation.description ?? operation.summary ?? "";
  article.append(...paragraphs(text));
  const section = (title, ...content) => article.append(make("h3", {}, say(title)), ...content);
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    section("docs_parameters", table(parameters.map((one) => [
      one.name, `${typeOf(one.schema, document_)}, ${say(`docs_where_${one.in}`)}`,
      [one.required ? say("docs_required") : "", one.description ?? ""].filter(Boolean).join(". "),
    ])));
  }
  const body = resolve(operation.requestBody, document_);
  if (body.content) {
    section("docs_body", ...paragraphs(body.description ?? ""));
    for (const [kind, { schema }] of Object.entries(body.content)) {
      article.append(make("p", {}, make("code", {}, kind)));
      const rows = propertiesOf(schema, document_);
      if (rows.length) article.append(table(rows));
    }
  }
  section("docs_example");
  const known = { ...context, resolve: (one) => resolve(one, document_) };
  for (const one of curlExamples(operation, known)) article.append(...example(one));
  const answers = Object.entries(operation.responses ?? {});
  section("docs_answers", table(answers.map(([status, answer]) => {
    const { description = "", content = {} } = resolve(answer, document_);
    // A refusal has one field, which says what its description says.
    const bodies = status < "400" ? Object.values(content) : [];
    const fields = bodies.flatMap(({ schema }) => propertiesOf(schema, document_));
    return [status, Object.keys(content).join(", "),
      [description, fields.map(([name]) => name).join(", ")].filter(Boolean).join(": ")];
  })));
  return article;
}

/** Operations of a description, in groups by the first part of their paths. */
function group(paths) {
  const groups = new Map();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const name = operation.tags?.[0] ?? `/${path.split("/")[1]}`;
      const place = `${method}${path.replace(/[^\w]+/g, "-")}`;
      groups.set(name, [...(groups.get(name) ?? []), { ...operation, method, path, place }]);
    }
  }
  return groups;
}

async function start() {
  fillTexts();
  document.title = say("docs_title");
  const described = await (await fetch("openapi.json")).json();
  const models = await fetch("models").catch(() => null);
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  const context = { base, token: models?.status === 401 };
  if (models?.ok) [context.model] = await models.json();
  if (context.token) tell(say("docs_token"));
  for (const [name, operations] of group(described.paths)) {
    part("routes").append(make("h2", {}, name));
    for (const operation of operations) {
      const badge = make("span", { className: "method" }, operation.method.toUpperCase());
      badge.dataset.method = operation.method;
      part("routes").append(make(
        "a", { href: `#${operation.place}` }, badge, make("span", {}, ...breakable(operation.path)),
      ));
      part("work").append(describe(operation, described, context));
    }
  }
}

function tell(text) {
  part("banner").hidden = false;
  part("banner").textContent = text;
}

start().catch((error) => tell(say("docs_failed", { reason: error.message })));
