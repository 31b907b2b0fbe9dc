// SPDX-License-Identifier: Apache-2.0
/** Commands that ask a route, as one pastes them into a shell. */

/** Bytes of an image in base64 on one line, with what every system has. */
const BASE64 = "\"$(base64 < photo.jpg | tr -d '\\n')\"";
/** Stands for them in an example until it is written. */
const MARK = "BASE64-OF-AN-IMAGE";

/**
 * Examples of an operation: one for each kind of body, else one.
 *
 * @param {object} operation of an OpenAPI document, with its `method` and `path`
 * @param {{base: string, token: boolean, model?: object, resolve: (schema: object) => object}}
 *   context address of the server, whether it asks for a token, and a model of `GET /models`
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
  if (method === "post") start[1] = "";  // a body says it
  return content.map(([kind, body]) => ({
    title: content.length > 1 ? kind : "",
    command: commandOf(kind, body, start, address, context),
  }));
}

function valueOf(name, parameters, { model }) {
  const known = parameters.find((one) => one.name === name);
  const names = name === "name" || name.startsWith("model");
  const given = names ? model?.name : model?.[name];
  return known?.example ?? given ?? name.toUpperCase();
}

function commandOf(kind, { schema, example, examples }, start, address, { resolve }) {
  if (kind === "multipart/form-data") {
    const fields = Object.entries(resolve(schema).properties ?? {});
    const files = fields.filter(([, field]) => /binary/.test(JSON.stringify(field)));
    return join([...start, ...files.map(([name]) => `-F ${name}=@photo.jpg`), address]);
  }
  const head = `-H 'Content-Type: ${kind}'`;
  if (!/json/.test(kind)) return join([...start, head, "--data-binary @photo.jpg", address]);
  const given = example ?? Object.values(examples ?? {})[0]?.value;
  const value = given ?? sample(schema, resolve);
  const text = JSON.stringify(value).replaceAll("'", "'\\''");
  if (!text.includes(MARK)) return join([...start, head, `-d '${text}'`, address]);
  // An image is too long for an argument, but not for printf, which is part of the shell.
  const form = text.replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll(MARK, "%s");
  const fill = Array(text.split(MARK).length - 1).fill(BASE64);
  return join(["printf", `'${form}'`, ...fill, "|", ...start, head, "--data-binary @-", address]);
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
