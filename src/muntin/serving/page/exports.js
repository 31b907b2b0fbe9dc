// SPDX-License-Identifier: Apache-2.0
/**
 * Answers as files: a drawn image, JSON as the server gave it, COCO, CSV.
 *
 * @typedef {object} Shown an image, and what is shown of its answer
 * @property {string} name of the file
 * @property {import("./results.js").Result} result
 * @property {import("./results.js").Mark[]} marks
 * @property {number} least score from which keypoints are drawn, and count as visible
 * @property {string} text the answer, as it was given
 */

import { drawScene, tagOf } from "./drawing.js";
import { percent } from "./marklist.js";
import { areaOf } from "./masks.js";

const SMALLEST_SIDE = 640;
const LARGEST_SIDE = 4096;
const MOST_ROWS = { classes: 5, semantic: 20 };

/** Let the browser save a file. */
export function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The name of a file without its ending. */
export function stemOf(name) {
  return name.replace(/\.[^.]*$/, "") || "image";
}

/** Join answers, each a list of one, to one list, without touching what is in them. */
export function joinJson(texts) {
  const inner = texts.map((text) => text.trim().replace(/^\[\n?|\n?\]$/g, ""));
  return `[\n${inner.join(",\n")}\n]\n`;
}

/**
 * Write what is shown as a data set in COCO's format; ids of categories count from 1.
 *
 * @param {Shown[]} all
 * @param {object} model an object of `GET /models`
 */
export function toCoco(all, model) {
  const images = all.map(({ name, result: { size } }, number) => ({
    id: number + 1, file_name: name, height: size[0], width: size[1],
  }));
  const skeleton = model.skeleton && {
    keypoints: model.skeleton.names,
    skeleton: model.skeleton.edges.map((pair) => pair.map((end) => end + 1)),
  };
  // Poses have no class.
  const { class_names: known } = model;
  const poses = all[0]?.result.kind === "poses";
  const names = poses ? [known.length === 1 ? known[0] : "instance"] : known;
  const categories = names.map((name, id) => ({ id: id + 1, name, ...(poses && skeleton) }));
  const annotations = [];
  all.forEach(({ result, marks, least }, number) => {
    for (const mark of marks) {
      // Nothing of it is labelled, and an edge of nothing is none.
      if (poses && !mark.box && !mark.points.some(({ score }) => score >= least)) continue;
      const known = { id: annotations.length + 1, image_id: number + 1, iscrowd: 0 };
      annotations.push({ ...known, ...annotationOf(mark, result, least) });
    }
  });
  return `${JSON.stringify({ images, annotations, categories }, null, 1)}\n`;
}

function annotationOf(mark, { kind, raw }, least) {
  const row = raw[kind][mark.number];
  const box = mark.box ?? boundsOf(mark, least);
  const bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]].map(round);
  const area = mark.mask ? areaOf(mark.mask) : round(bbox[2] * bbox[3]);
  const score = kind === "semantic" ? {} : { score: mark.score };
  if (kind !== "poses") {
    const mask = row.mask ? { segmentation: row.mask } : {};
    return { category_id: mark.id + 1, bbox, area, ...score, ...mask };
  }
  const seen = row.keypoints.map(([x, y, sure]) => (sure >= least ? [x, y, 2] : [0, 0, 0]));
  return {
    category_id: 1, bbox, area, ...score, keypoints: seen.flat(),
    num_keypoints: seen.filter((point) => point[2]).length,
  };
}

/** Edges of what a mark covers, where the answer has no box. */
function boundsOf(mark, least) {
  const points = mark.points.filter(({ score }) => score >= least);
  const xs = points.map(({ x }) => x);
  const ys = points.map(({ y }) => y);
  const { spans } = mark.mask ?? { spans: [] };
  for (let place = 0; place < spans.length; place += 3) {
    xs.push(spans[place], spans[place] + 1);
    ys.push(spans[place + 1], spans[place + 2]);
  }
  const lowest = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
  const highest = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);
  return [lowest(xs), lowest(ys), highest(xs), highest(ys)];
}

function round(value) {
  return Math.round(1000 * value) / 1000;
}

const HEADS = {
  classes: ["path", "class", "id", "score"],
  boxes: ["path", "name", "id", "score", "left", "top", "right", "bottom"],
  semantic: ["path", "name", "id", "share", "pixels"],
  poses: ["path", "instance", "score", "keypoint", "x", "y", "keypoint_score"],
};

/**
 * Write what is shown as a table: a line for each class, object, region or keypoint.
 *
 * @param {Shown[]} all
 */
export function toCsv(all) {
  const lines = all.length ? [HEADS[all[0].result.kind]] : [];
  for (const { name, result: { kind, raw }, marks } of all) {
    for (const mark of marks) {
      const named = [name, mark.name, mark.id, mark.score];
      if (kind === "classes") lines.push(named);
      if (kind === "boxes") lines.push([...named, ...mark.box]);
      if (kind === "semantic") lines.push([...named, areaOf(mark.mask)]);
      if (kind === "poses") {
        raw.poses[mark.number].keypoints.forEach((point, place) => {
          lines.push([name, mark.number + 1, mark.score, mark.points[place].name, ...point]);
        });
      }
    }
  }
  return lines.map((line) => `${line.map(quote).join(",")}\r\n`).join("");
}

function quote(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Draw a scene on its image, with a legend below where the answer is about the whole image.
 *
 * @param {string} address of the image; empty for a blank one
 * @param {import("./drawing.js").Scene} scene
 * @param {import("./drawing.js").MaskLayer} layer
 * @returns {Promise<Blob>} PNG
 */
export async function drawImage(address, scene, layer) {
  const [height, width] = scene.result.size;
  const longest = Math.max(height, width);
  const scale = longest < SMALLEST_SIDE ? Math.ceil(SMALLEST_SIDE / longest)
    : Math.min(1, LARGEST_SIDE / longest);
  const unit = Math.max(1, (longest * scale) / 1000);
  const rows = legendOf(scene);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  const high = Math.round(height * scale);
  canvas.height = high + Math.ceil(unit * (rows.length ? 22 * rows.length + 16 : 0));
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    context.imageSmoothingEnabled = scale <= 1;
    context.drawImage(image, 0, 0, canvas.width, high);
  }
  drawScene(context, scene, layer, { scale, left: 0, top: 0, unit });
  drawLegend(context, rows, high, unit);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function legendOf({ result, marks }) {
  if (result.kind === "boxes" || result.kind === "poses") return [];
  const text = (mark) =>
    result.kind === "semantic" ? `${mark.name} ${percent(mark.score)}` : tagOf(mark);
  return marks.slice(0, MOST_ROWS[result.kind]).map((mark) => ({ ...mark, text: text(mark) }));
}

function drawLegend(context, rows, top, unit) {
  context.font = `${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  rows.forEach(({ colour, score, text }, number) => {
    const y = top + unit * (8 + 22 * number);
    context.globalAlpha = 0.35;
    context.fillStyle = colour;
    context.fillRect(30 * unit, y + unit, (context.canvas.width - 38 * unit) * score, 18 * unit);
    context.globalAlpha = 1;
    context.fillRect(8 * unit, y + unit, 16 * unit, 18 * unit);
    context.fillStyle = "#1c2230";
    context.fillText(text, 34 * unit, y + 10 * unit);
  });
}
