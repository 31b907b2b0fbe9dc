// SPDX-License-Identifier: Apache-2.0
/** Ways of images into the page: chosen, photographed, dropped, pasted. */

/**
 * Listen for images.
 *
 * @param {HTMLElement} zone looks different while something is dragged over the page
 * @param {HTMLInputElement[]} inputs
 * @param {(files: File[]) => void} take
 */
export function listenForImages(zone, inputs, take) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      take([...input.files]);
      input.value = "";  // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    const files = filesOf(event.clipboardData);
    if (files.length) {
      event.preventDefault();
      take(files);
    }
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      zone.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    const files = filesOf(event.dataTransfer);
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
}

function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}
