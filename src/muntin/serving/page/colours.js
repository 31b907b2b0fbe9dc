// SPDX-License-Identifier: Apache-2.0
/** Colours of classes and instances, and of text upon them. */

/**
 * The colours of Okabe and Ito, which differ for every kind of colour vision, and then always the
 * one that is farthest (in CIELAB) from all before it, neither near black nor near white.
 */
export const PALETTE = [
  "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#f0e442", "#4b00ff",
  "#00ff00", "#ff1ee1", "#ff005a", "#0069ff", "#695a1e", "#ffe1b4", "#4ba500", "#00ff96",
  "#00ffff", "#962d2d", "#872da5", "#d20f87", "#b4f096", "#b496ff", "#ff9687", "#ff0000",
  "#1e6969", "#a5f000", "#f0d2ff", "#a54bff", "#96961e", "#2d690f", "#694b69", "#96d2c3",
  "#f078e1", "#3c4ba5", "#87a569", "#c3965a", "#96695a", "#c30f1e", "#ff6996", "#69ffc3",
  "#962d5a", "#965a00", "#3c96ff", "#00b45a", "#87ff69", "#9696d2", "#003cf0", "#ffc3c3",
];

/** Colour of a class or an instance, by its number. */
export function colourAt(number) {
  return PALETTE[number % PALETTE.length];
}

/**
 * Colours of the classes where mask files of the data set hold colours; else null.
 *
 * @param {object} model an object of `GET /models`
 * @returns {string[] | null}
 */
export function encodedColours(model) {
  if (model.encoding?.kind !== "color") return null;
  return model.encoding.values.map((value) => `#${value.toString(16).padStart(6, "0")}`);
}

/** Red, green and blue of "#rrggbb". */
function partsOf(colour) {
  return [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
}

/** The four bytes of a pixel of ImageData, as one number; `alpha` from 0 to 255. */
export function pixelOf(colour, alpha = 255) {
  return new Uint32Array(Uint8Array.of(...partsOf(colour), alpha).buffer)[0];
}

/** Black or white, whichever is read more easily upon a colour. */
export function inkOn(colour) {
  const [red, green, blue] = partsOf(colour).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  // Where contrast with both is equal.
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}
