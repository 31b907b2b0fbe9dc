// SPDX-License-Identifier: Apache-2.0
/**
 * Images and their answers: sent a few at a time, and again when the server has no time.
 *
 * @typedef {object} Answer of one image by one model
 * @property {"queued" | "sending" | "waiting" | "done" | "failed"} state
 * @property {string} [text] JSON, as `POST /predict` gave it
 * @property {import("./results.js").Result} [result]
 * @property {Refusal} [refusal] why it waits or failed
 * @property {number} [until] time (ms) at which it is sent again
 * @property {number} [since] time (ms) at which it was sent
 */

import { Refusal, ask, readHealth } from "./requests.js";
import { MaskLayer } from "./drawing.js";
import { readResult } from "./results.js";

const TOGETHER = 3;
/** Seconds between attempts, where the server does not say. */
const PAUSE = 2;

let numbers = 0;

/** An image that the user gave. */
export class Item {
  /** @param {File} file */
  constructor(file) {
    this.number = numbers++;
    this.file = file;
    this.name = file.name || "image";
    this.address = URL.createObjectURL(file);
    /** Height and width as the browser shows it; null until known, or where it cannot. */
    this.seen = null;
    /** Whether the browser could show it; null until known. */
    this.visible = null;
    this.stopper = new AbortController();
    /** @type {Map<string, Answer>} by name of the model */
    this.answers = new Map();
  }

  /** Find out whether the browser shows the image, and in which size. */
  async look() {
    const image = new Image();
    this.visible = await new Promise((resolve) => {
      image.onload = () => resolve(true);
      image.onerror = () => resolve(false);
      image.src = this.address;
    });
    this.seen = this.visible ? [image.naturalHeight, image.naturalWidth] : null;
  }

  /** Whether the browser shows the pixels that the model saw: same height and width. */
  agrees(size) {
    return Boolean(this.visible && this.seen.join() === size.join());
  }

  drop() {
    this.stopper.abort();
    URL.revokeObjectURL(this.address);
  }
}

/** Sends images, and tells of every change. */
export class Queue {
  /** @param {(item: Item, model: object) => void} changed */
  constructor(changed) {
    this.changed = changed;
    this.waiting = [];
    /** Those that are sent, each with what stops it. */
    this.jobs = new Set();
  }

  /** Leave off what other models are still asked for: nobody looks at it, and others wait. */
  keep(model) {
    const left = ([item, other]) => {
      if (other.name === model.name) return true;
      item.answers.delete(other.name);
      return false;
    };
    this.waiting = this.waiting.filter(left);
    for (const job of this.jobs) if (!left([job.item, job.model])) job.stopper.abort();
  }

  /** Ask a model for an image, unless it was asked already. */
  add(item, model, again = false) {
    if (item.answers.has(model.name) && !again) return;
    this.set(item, model, { state: "queued" });
    this.waiting.push([item, model]);
    this.advance();
  }

  set(item, model, answer) {
    item.answers.set(model.name, answer);
    if (!item.stopper.signal.aborted) this.changed(item, model);
  }

  advance() {
    while (this.jobs.size < TOGETHER && this.waiting.length) {
      const [item, model] = this.waiting.shift();
      if (item.stopper.signal.aborted) continue;
      const job = { item, model, stopper: new AbortController() };
      const { signal } = job.stopper;
      item.stopper.signal.addEventListener("abort", () => job.stopper.abort(), { signal });
      this.jobs.add(job);
      this.send(item, model, signal).finally(() => {
        this.jobs.delete(job);
        this.advance();
      });
    }
  }

  async send(item, model, signal) {
    while (!signal.aborted) {
      this.set(item, model, { state: "sending", since: Date.now() });
      try {
        const text = await requestPrediction(item, model, signal);
        if (signal.aborted) return;
        const result = readResult(JSON.parse(text)[0], model);
        this.set(item, model, { state: "done", text, result, layer: new MaskLayer(result) });
        return;
      } catch (error) {
        if (signal.aborted) return;
        const refusal = error instanceof Refusal ? error : new Refusal(200, String(error));
        if (!refusal.passing) {
          this.set(item, model, { state: "failed", refusal });
          return;
        }
        const seconds = Math.min(60, refusal.seconds || PAUSE);
        const until = Date.now() + 1000 * seconds;
        this.set(item, model, { state: "waiting", refusal, until });
        await pause(seconds, signal);
      }
    }
  }
}

async function requestPrediction(item, model, signal) {
  const query = new URLSearchParams({ model: model.name, name: item.name.slice(0, 200) });
  try {
    const response = await ask(`predict?${query}`, {
      method: "POST", body: item.file, signal,
      headers: { "Content-Type": "application/octet-stream" },
    });
    return await response.text();
  } catch (error) {
    // A server that refuses a large body may close the connection before the browser reads why.
    if (error.status === 0 && (await readHealth()) !== "GONE") error.cut = true;
    throw error;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const clock = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(clock); resolve(); }, { once: true });
  });
}
