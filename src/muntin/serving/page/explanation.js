// SPDX-License-Identifier: Apache-2.0
/**
 * The page that explains an answer, in a tab of its own.
 *
 * A page from a `blob:` address would have the strict policy of this one, under which its own
 * script does not run. So the tab opens `explanation`, whose policy allows that and shuts it off
 * from the server, and is sent the page.
 */

import { ask } from "./requests.js";
import { say } from "./texts.js";

/**
 * Explain an image.
 *
 * @param {import("./queue.js").Item} item
 * @param {string} model
 * @param {(text: string) => void} tell
 */
export async function explain(item, model, tell) {
  // Opened at once: later, the browser would not see that the user asked for it.
  const tab = window.open("explanation", "_blank");
  if (!tab) {
    tell(say("explain_blocked"));
    return;
  }
  const loaded = new Promise((resolve) => {
    window.addEventListener("message", function hear(event) {
      if (event.source !== tab || event.data !== "ready") return;
      window.removeEventListener("message", hear);
      resolve();
    });
  });
  const send = async (message) => {
    await loaded;
    tab.postMessage(message, "*");
  };
  tell(say("explaining"));
  send({ text: say("explaining") });
  try {
    const query = new URLSearchParams({ model, name: item.name.slice(0, 200) });
    const response = await ask(`explain?${query}`, {
      method: "POST", body: item.file, signal: item.stopper.signal,
      headers: {
        "Content-Type": "application/octet-stream",
        "Accept-Language": document.documentElement.lang,
      },
    });
    send({ page: await response.text() });
    tell("");
  } catch (error) {
    const text = say("explain_failed", { reason: error.message || say("gone") });
    send({ text });
    tell(text);
  }
}
