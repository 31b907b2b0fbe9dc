// SPDX-License-Identifier: Apache-2.0
/** One image and its answer: drawn, listed, summed up, and saved. */

import { drawScene, tagOf } from "./drawing.js";
import { explain } from "./explanation.js";
import { drawImage, joinJson, save, stemOf, toCoco, toCsv } from "./exports.js";
import { MarkList, percent } from "./marklist.js";
import { KEYPOINT_SCORE, countNames, markAt, marksAbove } from "./results.js";
import { language, say } from "./texts.js";
import { View } from "./view.js";

const part = (id) => document.getElementById(id);
const HEADINGS = { classes: "classes", boxes: "objects", semantic: "regions", poses: "instances" };
const MOST_NAMED = 4;
/** Seconds after which an image that is sent says how long that was ago. */
const LONG = 5;

export class Viewer {
  /**
   * @param {() => import("./queue.js").Item[]} listItems all images
   * @param {(item: object) => void} retry
   */
  constructor(listItems, retry) {
    this.listItems = listItems;
    this.item = null;
    this.model = null;
    /** What the user chose, by name of the model. */
    this.choices = new Map();
    this.marks = [];
    this.pinned = null;
    this.active = null;
    /** The keypoint that is pointed at. */
    this.point = null;
    this.view = new View(part("frame"), {
      draw: (context, place) => this.draw(context, place),
      point: (spot, chosen) => this.pointAt(spot, chosen),
    });
    this.list = new MarkList(part("list"), part("more"), {
      point: (entry) => this.activate(entry?.mark ?? this.pinned, entry?.point, Boolean(entry)),
      open: ({ mark }) => this.open(mark),
    });
    part("again").addEventListener("click", () => retry(this.item));
    this.listen();
  }

  listen() {
    for (const name of ["threshold", "least", "opacity"]) {
      part(name).addEventListener("input", (event) => {
        this.choice[name] = Number(event.target.value);
        this.select();
      });
    }
    part("larger").addEventListener("click", () => this.view.zoom(1.4));
    part("smaller").addEventListener("click", () => this.view.zoom(1 / 1.4));
    part("whole").addEventListener("click", () => this.view.fit());
    for (const button of part("downloads").children) {
      button.addEventListener("click", () => this.save(button.dataset.file));
    }
    part("explain").addEventListener("click", () => {
      const tell = (text) => { part("explain-state").textContent = text; };
      explain(this.item, this.model.name, tell);
    });
  }

  get answer() {
    return this.item?.answers.get(this.model.name);
  }

  get choice() {
    const { name, threshold, kind } = this.model;
    if (!this.choices.has(name)) {
      const opacity = kind === "segmentation" ? 0.6 : 0.4;
      this.choices.set(name, { threshold: threshold ?? 0, least: KEYPOINT_SCORE, opacity });
    }
    return this.choices.get(name);
  }

  /** Show an image with the answer of a model, as far as it is there. */
  show(item, model) {
    const other = item !== this.item || model !== this.model;
    this.item = item;
    this.model = model;
    part("viewer").hidden = !item;
    clearTimeout(this.clock);
    if (!item) return;
    if (other) {
      this.pinned = this.active = this.point = null;
      part("explain-state").textContent = "";
    }
    part("name").textContent = item.name;
    part("frame").setAttribute("aria-label", say("frame", { name: item.name }));
    const result = this.answer?.result;
    const size = result?.size ?? item.seen ?? [300, 400];
    const shown = item.visible !== false && (!result || item.agrees(size));
    this.view.show(shown ? item.address : "", size);
    part("frame").classList.toggle("blank", !shown);
    part("note").textContent = shown ? "" : this.explainBlank(size, Boolean(result));
    this.showState();
    part("answer").hidden = !result;
    const files = result?.kind === "classes" ? "JSON, CSV" : "JSON, COCO, CSV";
    const count = this.finished().length;
    part("for-all").hidden = count < 2;
    part("for-all").lastElementChild.textContent = say("all", { count, files });
    if (result) this.showControls(result);
    this.select();
  }

  explainBlank([height, width], known) {
    if (this.item.visible) {
      return say("turned", { seen: `${this.item.seen[1]} x ${this.item.seen[0]}` });
    }
    return known ? say("invisible", { height, width }) : say("invisible_yet");
  }

  /** Say how far the answer is: on its way, refused for now, or failed. */
  showState() {
    const { state, refusal, since } = this.answer ?? { state: "queued" };
    part("frame").classList.toggle("busy", state === "sending");
    // One that is not sent yet waits for those before it.
    const wait = state === "queued" || state === "waiting" ? this.findWait() : null;
    part("trouble").hidden = state !== "failed" && !wait;
    part("again").hidden = state !== "failed";
    if (state !== "failed" && state !== "done") {
      this.clock = setTimeout(() => this.showState(), 1000);
    }
    if (wait) {
      const seconds = Math.max(0, Math.ceil((wait.until - Date.now()) / 1000));
      const text = say("waiting_for", { reason: wait.refusal.message.replace(/\.$/, ""), seconds });
      part("trouble").firstElementChild.textContent = text;
    } else if (state === "failed") {
      part("trouble").firstElementChild.textContent = this.explainFailure(refusal);
    }
    const seconds = Math.floor((Date.now() - since) / 1000);
    const long = state === "sending" && seconds >= LONG;
    const text = say(long ? "sending_long" : state, { seconds });
    if (state !== "done") part("summary").textContent = text;
  }

  /** Why this image, or the first of those before it, waits for the server; else null. */
  findWait() {
    const all = [this.item, ...this.listItems()].map((item) => item.answers.get(this.model.name));
    return all.find((answer) => answer?.state === "waiting") ?? null;
  }

  explainFailure(refusal) {
    const size = (this.item.file.size / 2 ** 20).toFixed(1);
    if (refusal.cut) return say("cut", { size });
    if (refusal.status === 401) return say("no_token");
    return refusal.message || say("gone");
  }

  showControls(result) {
    const masked = result.marks.some((mark) => mark.mask);
    part("for-threshold").hidden = part("origin").hidden = result.kind === "semantic";
    part("for-least").hidden = result.kind !== "poses";
    part("for-opacity").hidden = !masked;
    part("for-opacity").firstElementChild.textContent =
      say(result.kind === "semantic" ? "opacity_map" : "opacity");
    const { threshold, threshold_from: why } = this.model;
    part("origin").textContent = this.explainThreshold(threshold ?? 0, why);
    part("heading").textContent = say(HEADINGS[result.kind]);
    part("downloads").querySelector("[data-file=coco]").disabled = result.kind === "classes";
    part("no-coco").hidden = result.kind !== "classes";
    for (const name of ["threshold", "least", "opacity"]) part(name).value = this.choice[name];
  }

  explainThreshold(threshold, why) {
    if (!why) return threshold ? "" : say("threshold_zero");
    return language === "en" ? say("threshold_from", { value: threshold.toFixed(2), why }) : "";
  }

  /** Select what is above the threshold, and draw and list it. */
  select() {
    const result = this.answer?.result;
    if (!result) {
      this.marks = [];
      this.view.refresh();
      return;
    }
    const { threshold, least, opacity } = this.choice;
    const values = { threshold: threshold.toFixed(2), least: least.toFixed(2) };
    values.opacity = `${Math.round(100 * opacity)} %`;
    for (const [name, value] of Object.entries(values)) {
      part(`for-${name}`).querySelector("output").textContent = value;
    }
    const marks = marksAbove(result, threshold);
    const listed = `${marks.length} ${least}`;
    // As many are the same, whatever the threshold.
    if (listed !== this.listed || this.list.result !== result) {
      this.listed = listed;
      this.marks = marks;
      if (!marks.includes(this.pinned)) this.pinned = null;
      if (!marks.includes(this.active)) this.active = this.pinned;
      this.list.show(result, marks, least);
    }
    part("summary").textContent = this.summarise(result);
    this.view.refresh();
  }

  summarise({ kind, marks: all }) {
    const { marks } = this;
    if (!marks.length) return say(all.length ? "summary_none" : "summary_empty");
    const counts = countNames(marks);
    const names = kind === "semantic"
      ? marks.slice(0, MOST_NAMED).map((mark) => `${mark.name} ${percent(mark.score)}`)
      : counts.slice(0, MOST_NAMED).map(([name, n]) => (counts.length > 1 ? `${n} ${name}` : name));
    const [first] = marks;
    const whole = marks.length === all.length;
    const count = whole ? marks.length : say("shown", { shown: marks.length, total: all.length });
    const score = first.score.toFixed(3);
    const values = { count, names: names.join(", "), name: first.name, score };
    const one = all.length === 1 && { boxes: "box", poses: "pose", semantic: "region" }[kind];
    const text = say(`summary_${one || kind}`, values);
    const { least } = this.choice;
    const unseen = kind === "poses"
      ? marks.filter(({ points }) => points.every((point) => point.score < least)).length : 0;
    if (!unseen) return text;
    return `${text}. ${say("unseen", { count: unseen, least: least.toFixed(2) })}`;
  }

  draw(context, place) {
    const { answer, marks, active, point } = this;
    if (!answer?.result) return;
    const scene = { result: answer.result, marks, active, point, ...this.choice };
    drawScene(context, scene, answer.layer, place);
  }

  /** Find what is under the pointer, name it beside, and mark it in the list. */
  pointAt(spot, chosen) {
    const { least } = this.choice;
    const found = spot && this.answer?.result
      ? markAt(this.marks, spot.x, spot.y, { reach: spot.reach, least }) : null;
    if (chosen) this.pinned = found?.mark === this.pinned ? null : found?.mark ?? null;
    this.activate(found?.mark ?? this.pinned, found?.point, true);
    const tip = part("tip");
    tip.hidden = !found;
    if (!found) return;
    const { mark, point } = found;
    const map = this.answer.result.kind === "semantic";
    const value = map ? `${mark.name} ${percent(mark.score)}` : tagOf(mark);
    tip.textContent = point ? `${point.name} ${point.score.toFixed(2)} (${value})` : value;
    const left = Math.min(spot.at[0] + 12, part("frame").clientWidth - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, spot.at[1] - tip.offsetHeight - 8)}px`;
  }

  activate(mark, point, follow) {
    if (mark === this.active && (point ?? null) === this.point) return;
    this.active = mark ?? null;
    this.point = point ?? null;
    this.list.mark(this.point ?? this.active, follow);
    this.view.refresh();
  }

  /** Keep a mark chosen, and show it large. */
  open(mark) {
    this.pinned = mark;
    this.activate(mark, null, false);
    if (mark.box) this.view.zoomTo(mark.box);
  }

  /** Images that have an answer of the model. */
  finished() {
    return this.listItems().filter(
      (item) => item.answers.get(this.model.name)?.state === "done",
    );
  }

  async save(kind) {
    const stem = stemOf(this.item.name);
    if (kind === "image") {
      const { result, layer } = this.answer;
      const scene = { result, marks: this.marks, active: this.pinned, ...this.choice };
      const address = part("frame").classList.contains("blank") ? "" : this.item.address;
      save(`${stem}.png`, await drawImage(address, scene, layer), "image/png");
      return;
    }
    const all = part("all").checked && !part("for-all").hidden;
    const shown = (all ? this.finished() : [this.item]).map((item) => {
      const { result, text } = item.answers.get(this.model.name);
      const { threshold, least } = this.choice;
      return { name: item.name, result, text, least, marks: marksAbove(result, threshold) };
    });
    const name = all ? this.model.name : stem;
    if (kind === "json") {
      const texts = shown.map((one) => one.text);
      save(`${name}.json`, texts.length > 1 ? joinJson(texts) : texts[0], "application/json");
    } else if (kind === "coco") {
      save(`${name}.coco.json`, toCoco(shown, this.model), "application/json");
    } else {
      save(`${name}.csv`, toCsv(shown), "text/csv");
    }
  }
}
