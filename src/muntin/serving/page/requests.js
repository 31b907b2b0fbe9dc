// SPDX-License-Identifier: Apache-2.0
/** Requests to the server: with a token where it asks for one, and what a refusal says. */

const KEY = "muntin-token";

/** An answer that is none; `status` 0 when there was no answer at all. */
export class Refusal extends Error {
  constructor(status, text, seconds = 0) {
    super(text);
    this.status = status;
    /** Seconds after which the server may be asked again; 0 if it does not say. */
    this.seconds = seconds;
  }

  /** Whether the server has no time now, and may have later. */
  get passing() {
    return this.status === 429 || this.status === 503;
  }
}

let token = recall();
/** @type {Promise<string> | null} while the user is asked */
let asking = null;
/** @type {(again: boolean) => Promise<string>} */
let askUser = async () => "";

function recall() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";  // storage may be forbidden
  }
}

/** Say how the user is asked for a token; "" means that there is none. */
export function onToken(ask) {
  askUser = ask;
}

/**
 * Ask the server.
 *
 * @param {string} path relative to the page, so that it works behind a prefix
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 * @throws {Refusal} there is no answer, or none of a status of success
 */
export async function ask(path, options = {}) {
  for (;;) {
    const sent = token;
    const headers = { ...options.headers, ...(sent && { Authorization: `Bearer ${sent}` }) };
    const response = await fetch(path, { ...options, headers }).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0, "");
    });
    if (response.ok) return response;
    if (response.status !== 401) throw await read(response);
    if (sent === token && !(await renew(sent))) throw await read(response);
  }
}

async function read(response) {
  const text = await response.text().catch(() => "");
  let reason = text.slice(0, 1000);
  try {
    reason = JSON.parse(text).error ?? reason;
  } catch {
    // a proxy may answer in HTML
  }
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  return new Refusal(response.status, String(reason), seconds);
}

/** Ask the user for a token, once for all requests that wait for it. */
async function renew(sent) {
  asking ??= askUser(Boolean(sent)).finally(() => { asking = null; });
  token = await asking;
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // then it is asked for again after a reload
  }
  return Boolean(token);
}

/** The state of the server: "UP", "STARTING", "DRAINING", or "GONE" when nothing answers. */
export async function readHealth() {
  try {
    const response = await fetch("health");
    return (await response.json()).status ?? "GONE";
  } catch {
    return "GONE";
  }
}
