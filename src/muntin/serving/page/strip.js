// SPDX-License-Identifier: Apache-2.0
/** The row of small images: which there are, how far each is, and which one is seen. */

import { say } from "./texts.js";

/** What stands for an image that the browser does not show: its kind, by its name. */
function signOf(name) {
  const sign = document.createElement("i");
  sign.textContent = /\.(\w{1,5})$/.exec(name)?.[1].toUpperCase() ?? "?";
  sign.setAttribute("aria-hidden", "true");
  return sign;
}

export class Strip {
  /**
   * @param {HTMLElement} list
   * @param {{choose: (item: object) => void, remove: (item: object) => void}} calls
   */
  constructor(list, calls) {
    this.list = list;
    this.calls = calls;
    /** @type {Map<object, HTMLElement>} */
    this.rows = new Map();
  }

  add(item) {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "small";
    const image = document.createElement("img");
    image.alt = "";
    image.decoding = "async";
    image.src = item.address;
    image.onerror = () => image.replaceWith(signOf(item.name));
    const name = document.createElement("span");
    name.textContent = item.name;
    button.append(image, name);
    button.addEventListener("click", () => this.calls.choose(item));
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "remove";
    remove.textContent = "\u00d7";
    remove.setAttribute("aria-label", say("remove", { name: item.name }));
    remove.title = remove.getAttribute("aria-label");
    remove.addEventListener("click", () => this.calls.remove(item));
    row.append(button, remove);
    this.list.append(row);
    this.rows.set(item, row);
    this.list.hidden = false;
  }

  remove(item) {
    this.rows.get(item).remove();
    this.rows.delete(item);
    this.list.hidden = this.rows.size === 0;
  }

  /** Tell whether an element belongs to an image. */
  has(item, element) {
    return this.rows.get(item).contains(element);
  }

  focus(item) {
    this.rows.get(item).firstElementChild.focus();
  }

  /** Show how far an image is, and whether it is the one that is seen. */
  update(item, state, chosen) {
    const row = this.rows.get(item);
    row.dataset.state = state;
    const button = row.querySelector(".small");
    button.setAttribute("aria-current", String(chosen));
    button.setAttribute("aria-label", say("image_state", { name: item.name, state: say(state) }));
    button.title = button.getAttribute("aria-label");
    if (chosen) row.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
