// SPDX-License-Identifier: Apache-2.0
/**
 * Answers of a server, of whatever task, as marks: what is drawn, listed and counted.
 *
 * @typedef {object} Mark
 * @property {number} number place in the answer
 * @property {string} name of the class; of an instance of keypoints its number
 * @property {number} id of the class
 * @property {number} score in [0, 1]; of a class of a semantic map its share of the image
 * @property {string} colour
 * @property {number[] | null} box left, top, right, bottom in pixels of the image
 * @property {import("./masks.js").Mask | null} mask
 * @property {{name: string, x: number, y: number, score: number, colour: string}[]} points
 *   in pixels, (0, 0) at the corner of the image
 *
 * @typedef {object} Result
 * @property {"classes" | "boxes" | "semantic" | "poses"} kind
 * @property {number[]} size height and width of the image
 * @property {Mark[]} marks best first
 * @property {number[][]} edges pairs of keypoints
 * @property {boolean} instances whether each mark has a colour of its own
 * @property {object} raw the answer
 */

import { colourAt, encodedColours } from "./colours.js";
import { covers, decodeMask } from "./masks.js";

/** Keypoints below this score are not drawn at first, as in drawings of the command line. */
export const KEYPOINT_SCORE = 0.3;

const READERS = { classes: readClass, boxes: readBox, semantic: readRegion, poses: readPose };

/**
 * Read the answer for one image.
 *
 * @param {object} raw an object of `POST /predict`
 * @param {object} model an object of `GET /models`
 * @returns {Result}
 */
export function readResult(raw, model) {
  const kind = Object.keys(READERS).find((name) => Array.isArray(raw[name]));
  if (!kind) throw new Error("an answer must hold classes, boxes, semantic or poses");
  const known = { model, names: raw.keypoint_names ?? [], colours: encodedColours(model) };
  const marks = raw[kind].map((row, number) => ({
    number, points: [], box: null, mask: null, ...READERS[kind](row, number, known),
  }));
  if (kind === "semantic") marks.sort((one, other) => other.score - one.score);
  const instances = kind === "poses" || marks.some((mark) => mark.mask && kind === "boxes");
  return { kind, size: raw.size, marks, edges: model.skeleton?.edges ?? [], instances, raw };
}

function readClass(row) {
  return { name: row.name, id: row.id, score: row.score, colour: colourAt(row.id) };
}

function readBox(row, number) {
  return {
    name: row.name, id: row.id, score: row.score, box: row.xyxy,
    // Neighbours of one class are told apart by their colours where masks touch.
    colour: colourAt(row.mask ? number : row.id),
    mask: row.mask ? decodeMask(row.mask) : null,
  };
}

function readRegion(row, _, { colours }) {
  return {
    name: row.name, id: row.id, score: row.share, mask: decodeMask(row.mask),
    colour: colours?.[row.id] ?? (/^background$/i.test(row.name) ? "#8a8f98" : colourAt(row.id)),
  };
}

function readPose(row, number, { names }) {
  const points = row.keypoints.map(([x, y, score], place) => ({
    // A keypoint at (0, 0) is in the middle of the first pixel.
    name: names[place] ?? String(place), x: x + 0.5, y: y + 0.5, score, colour: colourAt(place),
  }));
  return {
    name: `#${number + 1}`, id: number, score: row.box_score ?? row.score,
    colour: colourAt(number), box: row.xyxy ?? null, points,
  };
}

/**
 * Select what is shown at a threshold; regions of a semantic map have none.
 *
 * @param {Result} result
 * @param {number} threshold
 * @returns {Mark[]}
 */
export function marksAbove(result, threshold) {
  if (result.kind === "semantic") return result.marks;
  return result.marks.filter((mark) => mark.score >= threshold);
}

/**
 * Find what is under a place of the image: the smallest that covers it.
 *
 * @param {Mark[]} marks
 * @param {number} x in pixels of the image
 * @param {number} y
 * @param {{reach: number, least: number}} points distance in pixels at which keypoints are found,
 *   and the score from which they are drawn
 * @returns {{mark: Mark, point: object | null} | null}
 */
export function markAt(marks, x, y, points) {
  const near = nearestPoint(marks, x, y, points);
  if (near) return near;
  const column = Math.floor(x);
  const row = Math.floor(y);
  const masked = marks.find((mark) => mark.mask && covers(mark.mask, column, row));
  if (masked) return { mark: masked, point: null };
  let found = null;
  for (const mark of marks) {
    if (!mark.box || mark.mask) continue;
    const [left, top, right, bottom] = mark.box;
    const inside = x >= left && x <= right && y >= top && y <= bottom;
    if (inside && (!found || sizeOf(mark.box) < sizeOf(found.box))) found = mark;
  }
  return found && { mark: found, point: null };
}

function nearestPoint(marks, x, y, { reach, least }) {
  let found = null;
  let nearest = reach;
  for (const mark of marks) {
    for (const point of mark.points) {
      const distance = Math.hypot(point.x - x, point.y - y);
      if (point.score >= least && distance < nearest) {
        nearest = distance;
        found = { mark, point };
      }
    }
  }
  return found;
}

function sizeOf([left, top, right, bottom]) {
  return (right - left) * (bottom - top);
}

/** Count marks of each name, most first. */
export function countNames(marks) {
  const counts = new Map();
  for (const { name } of marks) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]);
}
