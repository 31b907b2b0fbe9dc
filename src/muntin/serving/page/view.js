// SPDX-License-Identifier: Apache-2.0
/**
 * The image in its frame: fitted, enlarged and moved, with a canvas over it.
 *
 * The browser draws the image itself, which keeps large photos fast; the canvas has as many pixels
 * as the screen.
 */

const MOST = 40;
const STEP = 1.4;
const MOVE = 60;

export class View {
  /**
   * @param {HTMLElement} frame holds an `img` and a `canvas`
   * @param {object} calls
   * @param {(context: CanvasRenderingContext2D, place: import("./drawing.js").Place) => void}
   *   calls.draw draws over the image; pixels of the canvas
   * @param {(spot: {x: number, y: number, reach: number, at: number[]} | null, chosen: boolean)
   *   => void} calls.point is told where the pointer is, in pixels of the image; `at` in those of
   *   the frame
   */
  constructor(frame, { draw, point }) {
    this.frame = frame;
    this.image = frame.querySelector("img");
    this.canvas = frame.querySelector("canvas");
    this.calls = { draw, point };
    this.size = [1, 1];
    this.fitted = true;
    /** Pixels of the screen for one of the image, and where its corner is. */
    this.place = { scale: 1, left: 0, top: 0 };
    this.pointers = new Map();
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(frame);
    this.listen();
  }

  /**
   * Show another image, fitted to the frame.
   *
   * @param {string} address of the image; empty for a blank one
   * @param {number[]} size height and width
   */
  show(address, size) {
    if (this.image.getAttribute("src") !== address) {
      if (address) this.image.src = address;
      else this.image.removeAttribute("src");
    }
    this.image.hidden = !address;
    const same = this.size.join() === size.join();
    this.size = size;
    this.frame.style.aspectRatio = `${size[1]} / ${size[0]}`;
    this.image.style.width = `${size[1]}px`;
    this.image.style.height = `${size[0]}px`;
    if (!same || this.fitted) this.fit();
    this.resize();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const sides = [this.frame.clientWidth, this.frame.clientHeight];
    [this.canvas.width, this.canvas.height] = sides.map((side) => Math.round(side * ratio));
    // A pixel of the canvas is one of the screen, also where the frame ends between two.
    this.canvas.style.width = `${this.canvas.width / ratio}px`;
    this.canvas.style.height = `${this.canvas.height / ratio}px`;
    if (this.fitted) this.fit();
    else this.refresh();
  }

  /** The scale at which the whole image is seen. */
  get whole() {
    const [height, width] = this.size;
    return Math.min(this.frame.clientWidth / width, this.frame.clientHeight / height) || 1;
  }

  fit() {
    const [height, width] = this.size;
    const scale = this.whole;
    this.place = {
      scale,
      left: (this.frame.clientWidth - width * scale) / 2,
      top: (this.frame.clientHeight - height * scale) / 2,
    };
    this.fitted = true;
    this.refresh();
  }

  /** Enlarge by a factor; the place (x, y) of the frame stays where it is. */
  zoom(factor, x = this.frame.clientWidth / 2, y = this.frame.clientHeight / 2) {
    const { scale, left, top } = this.place;
    const most = Math.max(MOST, 2 * this.whole);
    const next = Math.min(most, Math.max(this.whole, scale * factor));
    if (next === this.whole) {
      this.fit();
      return;
    }
    const ratio = next / scale;
    this.place = { scale: next, left: x - (x - left) * ratio, top: y - (y - top) * ratio };
    this.fitted = false;
    this.move(0, 0);
  }

  /** Show a box of the image as large as the frame allows. */
  zoomTo([left, top, right, bottom]) {
    const [wide, high] = [this.frame.clientWidth, this.frame.clientHeight];
    const room = 0.7 * Math.min(wide / (right - left), high / (bottom - top));
    const scale = Math.min(MOST, Math.max(this.whole, room));
    this.place = {
      scale,
      left: (wide - scale * (left + right)) / 2,
      top: (high - scale * (top + bottom)) / 2,
    };
    this.fitted = false;
    this.move(0, 0);
  }

  /** Move by pixels of the screen, as far as the image fills the frame. */
  move(right, down) {
    const { scale } = this.place;
    const [height, width] = this.size.map((side) => side * scale);
    const inside = (value, side, room) =>
      side <= room ? (room - side) / 2 : Math.min(0, Math.max(room - side, value));
    this.place.left = inside(this.place.left + right, width, this.frame.clientWidth);
    this.place.top = inside(this.place.top + down, height, this.frame.clientHeight);
    this.refresh();
  }

  /** Draw again, once before the screen shows the next picture. */
  refresh() {
    this.frame.classList.toggle("moved", !this.fitted);
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const { scale, left, top } = this.place;
      this.image.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
      this.image.classList.toggle("coarse", scale >= 3);
      const unit = window.devicePixelRatio || 1;
      const context = this.canvas.getContext("2d");
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      const place = { scale: scale * unit, left: left * unit, top: top * unit, unit };
      this.calls.draw(context, place);
      this.canvas.dataset.drawn = String(Number(this.canvas.dataset.drawn ?? 0) + 1);
    });
  }

  /** Where an event is: in pixels of the image, and of the frame. */
  spotOf(event) {
    const frame = this.frame.getBoundingClientRect();
    const at = [event.clientX - frame.left, event.clientY - frame.top];
    const { scale, left, top } = this.place;
    return { x: (at[0] - left) / scale, y: (at[1] - top) / scale, reach: 10 / scale, at };
  }

  listen() {
    const { frame, pointers } = this;
    frame.addEventListener("wheel", (event) => {
      // Pinching a touch pad arrives as a wheel with Ctrl; a plain wheel scrolls the page.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 200), ...this.spotOf(event).at);
    }, { passive: false });
    frame.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, this.spotOf(event).at);
      this.moved = 0;
    });
    frame.addEventListener("pointermove", (event) => this.follow(event));
    frame.addEventListener("pointerup", (event) => {
      const alone = pointers.size === 1;
      pointers.delete(event.pointerId);
      if (alone && this.moved < 6) this.calls.point(this.spotOf(event), true);
    });
    for (const name of ["pointercancel", "pointerleave"]) {
      frame.addEventListener(name, (event) => {
        pointers.delete(event.pointerId);
        if (event.pointerType === "mouse") this.calls.point(null, false);
      });
    }
    frame.addEventListener("dblclick", (event) => this.zoom(2, ...this.spotOf(event).at));
    frame.addEventListener("keydown", (event) => this.press(event));
  }

  follow(event) {
    const { pointers } = this;
    const spot = this.spotOf(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      this.calls.point(spot, false);
      return;
    }
    const [right, down] = [spot.at[0] - before[0], spot.at[1] - before[1]];
    this.moved += Math.abs(right) + Math.abs(down);
    pointers.set(event.pointerId, spot.at);
    if (pointers.size === 1) {
      if (!this.fitted) this.move(right, down);
      return;
    }
    const [other] = [...pointers].filter(([number]) => number !== event.pointerId);
    const apart = (one) => Math.hypot(one[0] - other[1][0], one[1] - other[1][1]);
    const middle = [0, 1].map((axis) => (spot.at[axis] + other[1][axis]) / 2);
    this.zoom(apart(spot.at) / Math.max(1, apart(before)), ...middle);
    if (!this.fitted) this.move(right / 2, down / 2);
  }

  press(event) {
    if (event.target !== this.frame || event.ctrlKey || event.metaKey || event.altKey) return;
    const ways = {
      "+": () => this.zoom(STEP), "=": () => this.zoom(STEP), "-": () => this.zoom(1 / STEP),
      0: () => this.fit(),
      ArrowLeft: () => this.move(MOVE, 0), ArrowRight: () => this.move(-MOVE, 0),
      ArrowUp: () => this.move(0, MOVE), ArrowDown: () => this.move(0, -MOVE),
    };
    const way = ways[event.key];
    // Arrows scroll the page while the whole image is seen.
    if (!way || (this.fitted && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    way();
  }
}
