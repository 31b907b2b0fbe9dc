// SPDX-License-Identifier: Apache-2.0
/** The list of what is shown: one stop of the Tab key, arrows within, a bar where it says more. */

import { say } from "./texts.js";

/** Rows that are seen at first; more are a wall. */
const FEW = { classes: 10, boxes: 25, poses: 25, semantic: 25 };
/** With more instances, their keypoints would hide them in the list. */
const MOST_POSES = 5;

/** A share of the image in per cent. */
export function percent(share) {
  return share >= 0.0005 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";
}

/**
 * A line of the list: a mark, or one of its keypoints.
 *
 * @typedef {{mark: object, point: object | null}} Entry
 */
export class MarkList {
  /**
   * @param {HTMLElement} list
   * @param {HTMLButtonElement} more shows the rest of many classes
   * @param {{point: (entry: Entry | null) => void, open: (entry: Entry) => void}} calls
   */
  constructor(list, more, calls) {
    this.list = list;
    this.more = more;
    this.calls = calls;
    /** @type {Entry[]} */
    this.entries = [];
    /** Rows by their mark or keypoint. */
    this.rows = new Map();
    this.active = null;
    this.whole = false;
    more.addEventListener("click", () => {
      this.whole = true;
      this.fill();
      list.focus();
    });
    list.addEventListener("keydown", (event) => this.press(event));
    list.addEventListener("mouseleave", () => calls.point(null));
    list.addEventListener("focus", () => {
      if (!this.active && this.visible.length) calls.point(this.visible[0]);
    });
    list.addEventListener("blur", () => calls.point(null));
  }

  /** Show marks of a result, and keypoints from a score on. */
  show(result, marks, least) {
    if (this.result !== result) this.whole = false;
    this.result = result;
    const limit = marks.length > MOST_POSES ? Infinity : least;
    /** Whether keypoints are listed too: those of an instance stay together. */
    this.points = limit !== Infinity && result.kind === "poses";
    this.entries = marks.flatMap((mark) => [
      { mark, point: null },
      ...mark.points.filter(({ score }) => score >= limit).map((point) => ({ mark, point })),
    ]);
    this.fill();
  }

  get visible() {
    const { kind } = this.result;
    const few = this.points ? Infinity : FEW[kind];
    // One more row takes no more place than the button would.
    return this.whole || this.entries.length <= few + 1 ? this.entries : this.entries.slice(0, few);
  }

  fill() {
    this.rows.clear();
    const rows = this.visible.map((entry, number) => {
      const row = this.makeRow(entry, number);
      this.rows.set(entry.point ?? entry.mark, row);
      return row;
    });
    this.list.replaceChildren(...rows);
    this.more.hidden = this.visible.length === this.entries.length;
    this.more.textContent = say("more", { count: this.entries.length });
    this.mark(this.active);
  }

  makeRow(entry, number) {
    const { name, colour, score } = entry.point ?? entry.mark;
    const row = document.createElement("li");
    row.id = `row-${number}`;
    row.setAttribute("role", "option");
    row.classList.toggle("point", Boolean(entry.point));
    const swatch = document.createElement("i");
    swatch.style.background = colour;
    const label = document.createElement("span");
    label.textContent = name;
    const value = document.createElement("b");
    const { kind } = this.result;
    const whole = kind === "semantic" || kind === "classes";
    value.textContent = kind === "semantic" ? percent(score) : score.toFixed(whole ? 3 : 2);
    row.append(swatch, label, value);
    if (whole) {
      const bar = document.createElement("s");
      bar.style.width = `${100 * score}%`;
      bar.style.background = colour;
      row.append(bar);
    }
    row.addEventListener("mouseenter", () => this.calls.point(entry));
    row.addEventListener("click", () => this.calls.open(entry));
    return row;
  }

  /** Mark the row of the mark or keypoint that is pointed at. */
  mark(active, follow = false) {
    this.rows.get(this.active)?.setAttribute("aria-selected", "false");
    if (follow && active && !this.rows.has(active) && this.unfold(active)) return;
    this.active = this.rows.has(active) ? active : null;
    const row = this.rows.get(this.active);
    if (!row) {
      this.list.removeAttribute("aria-activedescendant");
      return;
    }
    row.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", row.id);
    if (follow) this.scrollTo(row);
  }

  /** Show all rows, as one of them is pointed at in the image. */
  unfold(active) {
    const known = this.entries.some(({ mark, point }) => (point ?? mark) === active);
    if (this.whole || !known) return false;
    this.whole = true;
    this.fill();
    this.mark(active, true);
    return true;
  }

  /** Scroll the list alone, not the page. */
  scrollTo(row) {
    const { list } = this;
    const top = row.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    const bottom = top + row.offsetHeight - list.clientHeight;
    if (bottom > list.scrollTop) list.scrollTop = bottom;
  }

  press(event) {
    const rows = this.visible;
    const place = rows.findIndex(({ mark, point }) => (point ?? mark) === this.active);
    const next = {
      ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: rows.length - 1,
      PageDown: place + 10, PageUp: place - 10,
    }[event.key];
    if (event.key === "Enter" && place >= 0) this.calls.open(rows[place]);
    else if (event.key === "Escape") this.calls.point(null);
    else if (next === undefined || !rows.length) return;
    else this.calls.point(rows[Math.min(Math.max(next, 0), rows.length - 1)]);
    event.preventDefault();
  }
}
