// SPDX-License-Identifier: Apache-2.0
/**
 * Marks drawn over their image: masks, boxes, keypoints and tags, at any zoom.
 *
 * @typedef {object} Scene what is drawn
 * @property {import("./results.js").Result} result
 * @property {import("./results.js").Mark[]} marks those that are shown, best first
 * @property {import("./results.js").Mark | null} active the one that is pointed at
 * @property {object | null} [point] the keypoint that is pointed at
 * @property {number} opacity of masks, in [0, 1]
 * @property {number} least score from which keypoints are drawn
 *
 * @typedef {object} Place where it is drawn: a pixel of the image is `scale` pixels of the canvas
 * @property {number} scale
 * @property {number} left of the image, in pixels of the canvas
 * @property {number} top
 * @property {number} unit pixels of the canvas that look like one
 */

import { inkOn, pixelOf } from "./colours.js";
import { paintMask, shrinkMask, traceMask } from "./masks.js";

/** With more marks, tags would hide the image: then the one that is pointed at has one. */
const MOST_TAGS = 25;

const LARGEST_LAYER = 2048;
const HALO = "rgba(0, 0, 0, 0.55)";
const FAINT = 0.3;

/** The masks of one result, in as many pixels as are worth it; kept between drawings. */
export class MaskLayer {
  /** @param {import("./results.js").Result} result */
  constructor({ size, marks }) {
    this.step = Math.ceil(Math.max(...size) / LARGEST_LAYER);
    this.masks = new Map();
    for (const mark of marks) {
      if (mark.mask) this.masks.set(mark, shrinkMask(mark.mask, this.step));
    }
    const [mask] = this.masks.values();
    if (mask) {
      this.canvas = document.createElement("canvas");
      this.canvas.width = mask.width;
      this.canvas.height = mask.height;
    }
    this.paths = new Map();
    this.painted = [];
  }

  /** Paint the masks of marks, the best on top, unless it is done already. */
  paint(marks, active) {
    const [before, pointed] = this.painted;
    if (before === marks && pointed === active) return;
    this.painted = [marks, active];
    const { width, height } = this.canvas;
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const shown = [...marks].reverse();
    if (marks.includes(active)) shown.push(active);
    for (const mark of shown) {
      const mask = this.masks.get(mark);
      const alpha = active && mark !== active ? 255 * FAINT : 255;
      if (mask) paintMask(mask, pixels, width, pixelOf(mark.colour, alpha));
    }
    this.canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** Outline of the mask of a mark, in pixels of the layer. */
  outline(mark) {
    if (!this.paths.has(mark)) {
      const path = new Path2D();
      traceMask(this.masks.get(mark), path);
      this.paths.set(mark, path);
    }
    return this.paths.get(mark);
  }
}

/**
 * Draw a scene into a canvas, which is not cleared before.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Scene} scene
 * @param {MaskLayer} layer of the result of the scene
 * @param {Place} place
 */
export function drawScene(context, scene, layer, place) {
  context.save();
  context.lineCap = "square";
  if (layer.canvas) drawMasks(context, scene, layer, place);
  if (["boxes", "poses"].includes(scene.result.kind)) drawObjects(context, scene, place);
  context.restore();
}

function drawMasks(context, { result, marks, active, opacity }, layer, { scale, left, top, unit }) {
  layer.paint(marks, active);
  const [height, width] = result.size;
  const cell = scale * layer.step;
  context.save();
  context.beginPath();
  context.rect(left, top, width * scale, height * scale);
  context.clip();
  context.setTransform(cell, 0, 0, cell, left, top);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = opacity;
  context.drawImage(layer.canvas, 0, 0);
  if (result.kind === "boxes" && opacity > 0) {
    context.lineJoin = "round";
    for (const mark of [...marks].reverse()) {
      context.globalAlpha = active && mark !== active ? FAINT : 1;
      context.lineWidth = ((mark === active ? 3 : 2) * unit) / cell;
      context.strokeStyle = mark.colour;
      context.stroke(layer.outline(mark));
    }
  }
  context.restore();
}

function drawObjects(context, scene, place) {
  const { marks, active } = scene;
  const last = active && marks.includes(active) ? [active] : [];
  const order = [...[...marks].reverse().filter((mark) => mark !== active), ...last];
  for (const mark of order) {
    context.globalAlpha = active && mark !== active ? FAINT : 1;
    if (mark.box) drawBox(context, scene, mark, place);
    if (mark.points.length) drawPose(context, scene, mark, place);
  }
  context.globalAlpha = 1;
  drawTags(context, scene, place);
}

function drawBox(context, { marks, active }, mark, { scale, left, top, unit }) {
  const plain = !mark.mask && !mark.points.length;
  // With many objects the outline of a mask is enough.
  if (mark.mask && mark !== active && marks.length > MOST_TAGS) return;
  // Whole pixels, for sharp lines.
  const [x, y, right, bottom] =
    mark.box.map((edge, number) => Math.round((number % 2 ? top : left) + edge * scale));
  const edges = [x, y, right - x, bottom - y];
  const line = unit * (plain ? 2 : 1) * (mark === active ? 1.5 : 1);
  if (plain && marks.length <= MOST_TAGS) {
    context.strokeStyle = HALO;
    context.lineWidth = line + 2 * unit;
    context.strokeRect(...edges);
  }
  context.strokeStyle = mark.colour;
  context.lineWidth = line;
  context.strokeRect(...edges);
}

function drawPose(context, { result, marks, least, point }, mark, { scale, left, top, unit }) {
  const seen = mark.points.map((point) => point.score >= least);
  const spots = mark.points.map(({ x, y }) => [left + x * scale, top + y * scale]);
  const [height, width] = result.size;
  const extent = mark.box ? Math.max(mark.box[2] - mark.box[0], mark.box[3] - mark.box[1])
    : Math.max(height, width);
  const radius = unit * Math.min(5, Math.max(2, (extent * scale) / unit / 45));
  for (const [one, other] of result.edges) {
    if (!seen[one] || !seen[other]) continue;
    context.beginPath();
    context.moveTo(...spots[one]);
    context.lineTo(...spots[other]);
    // One instance: each line in the colour of its end; several: each instance in its own.
    const colour = marks.length > 1 ? mark.colour : mark.points[other].colour;
    for (const [style, extra] of [[HALO, 2 * unit], [colour, 0]]) {
      context.strokeStyle = style;
      context.lineWidth = 0.9 * radius + extra;
      context.stroke();
    }
  }
  spots.forEach(([x, y], place) => {
    if (!seen[place]) return;
    context.beginPath();
    const large = mark.points[place] === point ? 1.6 : 1;
    context.arc(x, y, large * radius, 0, 2 * Math.PI);
    context.fillStyle = mark.points[place].colour;
    context.fill();
    context.strokeStyle = HALO;
    context.lineWidth = unit;
    context.stroke();
  });
}

function drawTags(context, { marks, active }, { scale, left, top, unit }) {
  const all = marks.length > MOST_TAGS ? [] : marks;
  const tagged = active && marks.includes(active) ? [active] : all;
  const taken = [];
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const mark of tagged) {
    if (!mark.box) continue;
    const text = tagOf(mark);
    const edges = mark.box.map((edge, place) => (place % 2 ? top : left) + edge * scale);
    const size = [context.measureText(text).width + 8 * unit, 17 * unit];
    const spot = freeSpot(edges, size, taken, context.canvas);
    if (!spot) continue;
    taken.push(spot);
    context.fillStyle = mark.colour;
    context.fillRect(...spot);
    context.fillStyle = inkOn(mark.colour);
    context.fillText(text, spot[0] + 4 * unit, spot[1] + size[1] / 2);
  }
}

/** Text of the tag of a mark. */
export function tagOf(mark) {
  const name = mark.name.length > 40 ? `${mark.name.slice(0, 38)}...` : mark.name;
  return `${name} ${mark.score.toFixed(2)}`;
}

/** Corner of a box where a tag hides least of other tags; null when the box is out of sight. */
function freeSpot([left, top, right, bottom], [width, height], taken, canvas) {
  if (right < 0 || bottom < 0 || left > canvas.width || top > canvas.height) return null;
  const inside = (value, most) => Math.min(Math.max(value, 0), Math.max(0, most));
  const above = top - height;
  const corners = [[left, above], [left, top], [right - width, above], [left, bottom]];
  let best = null;
  let least = Infinity;
  for (const [x, y] of corners) {
    const at = [inside(x, canvas.width - width), inside(y, canvas.height - height)];
    const spot = [...at, width, height];
    const hidden = taken.reduce((sum, other) => sum + shared(spot, other), 0);
    if (hidden < least) [best, least] = [spot, hidden];
  }
  return best;
}

function shared(one, other) {
  const wide = Math.min(one[0] + one[2], other[0] + other[2]) - Math.max(one[0], other[0]);
  const high = Math.min(one[1] + one[3], other[1] + other[3]) - Math.max(one[1], other[1]);
  return Math.max(wide, 0) * Math.max(high, 0);
}
