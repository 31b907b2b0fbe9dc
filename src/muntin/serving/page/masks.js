// SPDX-License-Identifier: Apache-2.0
/**
 * Masks in COCO's run-length encoding: decoded, looked up, painted, and traced.
 *
 * A decoded mask is a list of spans, three numbers each: column, first row, row after the last.
 * Spans are sorted by column, then row, as the runs are.
 *
 * @typedef {{height: number, width: number, spans: Int32Array}} Mask
 */

/**
 * Read compressed run lengths: 5 bits a character, the lowest first; a sixth says that more follow.
 * From the fourth run on, the difference to the run two before is kept.
 *
 * @param {string} text
 * @returns {number[]} lengths of runs, off and on in turn
 */
function readCounts(text) {
  const counts = [];
  for (let place = 0; place < text.length; ) {
    let value = 0;
    let digit = 0;
    let code;
    do {
      code = text.charCodeAt(place++) - 48;
      value |= (code & 31) << (5 * digit++);
    } while (code & 32);
    if (code & 16) value |= -1 << (5 * digit);
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

/**
 * Decode a mask of an answer; its counts are compressed, or plain numbers.
 *
 * @param {{size: number[], counts: string | number[]}} mask
 * @returns {Mask}
 */
export function decodeMask({ size: [height, width], counts }) {
  const runs = typeof counts === "string" ? readCounts(counts) : counts;
  const spans = [];
  let end = 0;
  runs.forEach((length, number) => {
    let start = end;
    end += length;
    while (number % 2 && start < end) {
      const column = Math.floor(start / height);
      const stop = Math.min(end, (column + 1) * height);
      spans.push(column, start - column * height, stop - column * height);
      start = stop;
    }
  });
  return { height, width, spans: Int32Array.from(spans) };
}

/** Tell whether a mask covers the pixel in column `x` and row `y`. */
export function covers({ spans }, x, y) {
  let low = 0;
  let high = spans.length / 3;
  while (low < high) {
    const middle = (low + high) >> 1;
    const column = spans[3 * middle];
    if (column < x || (column === x && spans[3 * middle + 2] <= y)) low = middle + 1;
    else high = middle;
  }
  return 3 * low < spans.length && spans[3 * low] === x && spans[3 * low + 1] <= y;
}

/** Count the pixels of a mask. */
export function areaOf({ spans }) {
  let area = 0;
  for (let place = 0; place < spans.length; place += 3) area += spans[place + 2] - spans[place + 1];
  return area;
}

/**
 * Keep every `step`-th row and column of a mask, each from the middle of what it stands for.
 *
 * @returns {Mask}
 */
export function shrinkMask(mask, step) {
  if (step === 1) return mask;
  const middle = step >> 1;
  const sampled = (first) => Math.ceil((first - middle) / step);
  const spans = [];
  for (let place = 0; place < mask.spans.length; place += 3) {
    const column = mask.spans[place];
    if (column % step !== middle) continue;
    const top = sampled(mask.spans[place + 1]);
    const bottom = sampled(mask.spans[place + 2]);
    if (top < bottom) spans.push((column - middle) / step, top, bottom);
  }
  const sides = [mask.height, mask.width].map((side) => Math.max(1, sampled(side)));
  return { height: sides[0], width: sides[1], spans: Int32Array.from(spans) };
}

/**
 * Paint a mask into pixels of `width` columns.
 *
 * @param {Uint32Array} pixels as ImageData holds them, four bytes each
 * @param {number} colour the four bytes
 */
export function paintMask({ spans }, pixels, width, colour) {
  for (let place = 0; place < spans.length; place += 3) {
    let pixel = spans[place + 1] * width + spans[place];
    for (let row = spans[place + 1]; row < spans[place + 2]; row++, pixel += width) {
      pixels[pixel] = colour;
    }
  }
}

/**
 * Trace the border of a mask along the edges of its pixels: lines to stroke, in any order.
 *
 * @param {Mask} mask
 * @param {{moveTo: Function, lineTo: Function}} path
 */
export function traceMask({ spans }, path) {
  const line = (left, top, right, bottom) => {
    path.moveTo(left, top);
    path.lineTo(right, bottom);
  };
  /** Column at which the horizontal line of each row began. */
  let open = new Map();
  let before = [];
  let last = -1;
  const turn = (column, edges) => {
    for (const [top, bottom] of differences(before, edges)) line(column, top, column, bottom);
    const still = new Map();
    for (const edge of edges) still.set(edge, open.get(edge) ?? column);
    for (const [edge, begun] of open) {
      if (!still.has(edge)) line(begun, edge, column, edge);
    }
    open = still;
    before = edges;
  };
  for (let place = 0; place < spans.length; ) {
    const column = spans[place];
    if (column !== last + 1 && before.length) turn(last + 1, []);
    const edges = [];
    for (; place < spans.length && spans[place] === column; place += 3) {
      edges.push(spans[place + 1], spans[place + 2]);
    }
    turn(column, edges);
    last = column;
  }
  turn(last + 1, []);
}

/** Stretches of rows that belong to one of two columns only, given by the edges of their spans. */
function differences(one, other) {
  const edges = [...one, ...other].sort((a, b) => a - b);
  const found = [];
  // Inside of exactly one: after an odd number of edges of both.
  for (let place = 0; place + 1 < edges.length; place += 2) {
    if (edges[place] < edges[place + 1]) found.push([edges[place], edges[place + 1]]);
  }
  return found;
}
