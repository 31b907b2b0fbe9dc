// SPDX-License-Identifier: Apache-2.0
/** The page: images in, models, and the state of the server. */

import { listenForImages } from "./intake.js";
import { Item, Queue } from "./queue.js";
import { ask, onToken, readHealth } from "./requests.js";
import { Strip } from "./strip.js";
import { fillTexts, say } from "./texts.js";
import { Viewer } from "./viewer.js";

const part = (id) => document.getElementById(id);
const pause = (seconds) => new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });

/** @type {Item[]} */
const items = [];
let models = [];
let model = null;
/** @type {Item | null} */
let current = null;
let connecting = false;

const queue = new Queue((item, asked) => {
  const { state, refusal } = item.answers.get(asked.name);
  if (state === "failed" && refusal.status === 0 && !refusal.cut) connect();
  // The models may have been read again since.
  if (asked.name === model.name) refresh(item);
});
const strip = new Strip(part("strip"), { choose, remove });
const viewer = new Viewer(() => items, (item) => queue.add(item, model, true));

function update(item) {
  const state = item.answers.get(model?.name)?.state ?? "queued";
  strip.update(item, state, item === current);
  return state;
}

function refresh(item) {
  const state = update(item);
  const others = state === "done" || state === "waiting";  // matter to the one that is seen
  if (model && (item === current || others)) viewer.show(current, model);
}

function choose(item) {
  current = item;
  items.forEach(update);
  if (model) viewer.show(current, model);
}

function take(files) {
  const added = files.map((file) => new Item(file));
  for (const item of added) {
    items.push(item);
    strip.add(item);
    item.look().then(() => {
      if (items.includes(item)) refresh(item);
    });
    if (model) queue.add(item, model);
  }
  part("intake").classList.remove("empty");
  part("invite").textContent = say("drop_more");
  if (added.length) choose(added[0]);
}

function remove(item) {
  const place = items.indexOf(item);
  const focused = strip.has(item, document.activeElement);
  items.splice(place, 1);
  item.drop();
  strip.remove(item);
  if (item === current) current = items[Math.min(place, items.length - 1)] ?? null;
  choose(current);
  if (current && focused) strip.focus(current);
  part("intake").classList.toggle("empty", !items.length);
  if (!items.length) {
    part("invite").textContent = say("drop");
    part("files").focus();
  }
}

/** Show what the server is, or is not, doing; "" for nothing to say. */
function tell(text, retry = false) {
  part("banner").hidden = !text;
  part("banner").firstElementChild.textContent = text;
  part("banner").lastElementChild.hidden = !retry;
}

/** Wait until the server answers, and read its models. */
async function connect() {
  if (connecting) return;
  connecting = true;
  const texts = { STARTING: "starting", DRAINING: "draining", GONE: "gone_banner" };
  try {
    for (;;) {
      const state = await readHealth();
      if (state === "UP") {
        const found = await (await ask("models")).json();
        if (found.length) {
          showModels(found);
          tell("");
          return;
        }
      }
      tell(say(texts[state] ?? "starting"));
      await pause(state === "GONE" ? 3 : 1);
    }
  } catch (refusal) {
    tell(refusal.status === 401 ? say("no_token") : refusal.message || say("gone"), true);
  } finally {
    connecting = false;
  }
}

function showModels(found) {
  models = found;
  const chosen = model?.name;
  part("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  part("models").hidden = models.length < 2;
  const wanted = models.find(({ name }) => name === chosen) ?? models[0];
  part("model").value = wanted.name;
  chooseModel(wanted);
}

function chooseModel(wanted) {
  model = wanted;
  const { task, model: network, class_names: names } = model;
  part("facts").textContent =
    say(names.length === 1 ? "fact" : "facts", { task, model: network, classes: names.length });
  queue.keep(model);
  for (const item of items) queue.add(item, model);
  choose(current);
}

/** Ask the user for the token of the server. */
function askToken(again) {
  const dialog = part("token-dialog");
  part("token-wrong").hidden = !again;
  part("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "send" ? part("token").value.trim() : "");
      part("token").value = "";
    }, { once: true });
  });
}

fillTexts();
document.title = say("title");
onToken(askToken);
listenForImages(part("intake"), [part("files"), part("camera")], take);
part("model").addEventListener("change", (event) => {
  chooseModel(models.find(({ name }) => name === event.target.value));
});
part("banner").lastElementChild.addEventListener("click", connect);
connect();
