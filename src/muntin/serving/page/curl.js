// SPDX-License-Identifier: Apache-2.0
/** Commands that ask a route, as one pastes them into a shell. */

/** Bytes of an image in base64 on one line, with what every system has. */
const BASE64 = `'"$(base64 < photo.jpg | tr -d '\\n')"'`;
const MARK = "\u0000";

/**
 * Examples of an operation: one for each kind of body, else one.
 *
 * @param {object} operation of an OpenAPI document, with its `method` and `path`
 * @param {{base: string, token: boolean, model: string, resolve: (schema: object) => object}}
 *   context address of the server, whether it asks for a token, and the name of a model of it
 * @returns {{title: string, command: string}[]}
 */
export function curlExamples(operation, context) {
  const { method, path, parameters = [], requestBody } = operation;
  const route = path.replace(/\{(\w+)\}/g, (_, name) => valueOf(name, parameters, context));
  const start = ["curl", method === "get" ? "" : `-X ${method.toUpperCase()}`];
  if (context.token) start.push('-H "Authorization: Bearer $TOKEN"');
  const address = quote(`${context.base}${route}`);
  const content = Object.entries(context.resolve(requestBody)?.content ?? {});
  if (!content.length) return [{ title: "", command: join([...start, address]) }];
  start[1] = "";
  return content.map(([kind, body]) => ({
    title: content.length > 1 ? kind : "",
    command: join([...start, ...bodyOf(kind, body, context), address]),
  }));
}

function valueOf(name, parameters, { model }) {
  const known = parameters.find((one) => one.name === name);
  const names = name === "name" || name.startsWith("model");
  return known?.example ?? ((names && model) || name.toUpperCase());
}

function bodyOf(kind, { schema, example, examples }, { resolve }) {
  if (kind === "multipart/form-data") {
    const fields = Object.entries(resolve(schema).properties ?? {});
    const files = fields.filter(([, field]) => /binary/.test(JSON.stringify(field)));
    return files.map(([name]) => `-F ${name}=@photo.jpg`);
  }
  if (!/json/.test(kind)) return [`-H 'Content-Type: ${kind}'`, "--data-binary @photo.jpg"];
  const given = example ?? Object.values(examples ?? {})[0]?.value;
  const value = given ?? sample(schema, resolve);
  const mark = JSON.stringify(MARK).slice(1, -1);
  const text = JSON.stringify(value).replaceAll("'", "'\\''").replaceAll(mark, BASE64);
  return ["-H 'Content-Type: application/json'", `-d '${text}'`];
}

/** A value that a schema allows. */
function sample(schema, resolve) {
  const known = resolve(schema);
  const given = known.example ?? known.default ?? known.examples?.[0] ?? known.enum?.[0];
  if (given !== undefined) return given;
  if (known.anyOf) return sample(known.anyOf[0], resolve);
  if (known.type === "array") return [sample(known.items, resolve)];
  if (known.type === "object" || known.properties) {
    const all = Object.entries(known.properties ?? {});
    const needed = known.required ?? all.slice(0, 1).map(([name]) => name);
    const kept = all.filter(([name]) => needed.includes(name));
    return Object.fromEntries(kept.map(([name, one]) => [name, sample(one, resolve)]));
  }
  if (known.format === "byte" || known.format === "base64") return MARK;
  return { string: "text", number: 0.5, integer: 1, boolean: true }[known.type] ?? {};
}

function quote(text) {
  return /[^\w:/.@%-]/.test(text) ? `'${text.replaceAll("'", "'\\''")}'` : text;
}

function join(words) {
  return words.filter(Boolean).join(" ");
}
