"use strict";
(() => {
  const texts = JSON.parse(document.getElementById("texts").textContent);
  const say = (key, fields) => texts[key].replace(/\{(\w+)\}/g, (_, name) => fields[name]);

  // ---- light and dark
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const nameTheme = () => { theme.textContent = isDark() ? texts.light : texts.dark; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  system.addEventListener("change", nameTheme);
  nameTheme();

  // ---- one image at a time
  const buttons = [...document.querySelectorAll(".picker button")];
  const choose = (image) => {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.show === image));
    }
    for (const part of document.querySelectorAll("[data-image]")) {
      part.hidden = part.dataset.image !== image;
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => choose(button.dataset.show));
  }
  if (buttons.length) choose(buttons[0].dataset.show);

  // ---- attention of the clicked token
  const VIRIDIS = [
    [68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
    [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37],
  ];
  const colour = (share) => {
    const place = share * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const mixed = VIRIDIS[low].map((v, i) => v + (VIRIDIS[low + 1][i] - v) * (place - low));
    return `rgb(${mixed.map(Math.round).join(" ")} / ${(0.3 + 0.6 * share).toFixed(3)})`;
  };
  const tables = new Map();
  const unpack = (name) => {
    if (!tables.has(name)) {
      const text = document.getElementById(`table-${name}`).textContent;
      const packed = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
      const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      tables.set(name, new Response(plain).arrayBuffer());
    }
    return tables.get(name);
  };

  for (const explorer of document.querySelectorAll(".explorer")) {
    const layers = JSON.parse(explorer.querySelector("script").textContent);
    const canvas = explorer.querySelector("canvas");
    const select = explorer.querySelector("select");
    const caption = explorer.querySelector("output");
    const scaleEnd = explorer.querySelector(".scale-end");
    const pen = canvas.getContext("2d");
    const image = new Image();
    const [height, width] = [Number(canvas.dataset.height), Number(canvas.dataset.width)];
    const zoom = canvas.width / width;
    let [x, y] = [Number(canvas.dataset.x), Number(canvas.dataset.y)];
    let lastDraw = 0;

    const cellOf = (layer) => {
      const step = [layer.covered[0] / layer.grid[0], layer.covered[1] / layer.grid[1]];
      const row = Math.min(Math.floor(y / step[0]), layer.grid[0] - 1);
      const column = Math.min(Math.floor(x / step[1]), layer.grid[1] - 1);
      return { row, column, step, token: row * layer.grid[1] + column };
    };

    const draw = async () => {
      const mine = ++lastDraw;
      const layer = layers[select.selectedIndex];
      const data = await Promise.all([layer.keys, layer.weights, layer.largest].map(unpack));
      if (mine !== lastDraw) return;
      const { row, column, step, token } = cellOf(layer);
      const count = layer.count;
      const keys = new Int32Array(data[0], token * count * 4, count);
      const weights = new Uint8Array(data[1], token * count, count);
      const largest = new Float32Array(data[2], token * 4, 1)[0];
      const box = (key) => {
        const [r, c] = [Math.floor(key / layer.grid[1]), key % layer.grid[1]];
        const [left, right] = [c, c + 1].map((place) => Math.round(place * step[1] * zoom));
        const [top, bottom] = [r, r + 1].map((place) => Math.round(place * step[0] * zoom));
        return [left, top, right - left, bottom - top];
      };
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      pen.fillStyle = "rgb(0 0 0 / 0.55)";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      let [best, inside, elsewhere, all] = [-1, 0, 0, 0];
      keys.forEach((key, i) => {
        all += weights[i];
        if (key < 0) { elsewhere += weights[i]; return; }
        inside += 1;
        if (best < 0 || weights[i] > weights[best]) best = i;
        pen.fillStyle = colour(weights[i] / 255);
        pen.fillRect(...box(key));
      });
      const [left, top, wide, high] = box(token);
      pen.lineWidth = 5;
      pen.strokeStyle = "#000000";
      pen.strokeRect(left, top, wide, high);
      pen.lineWidth = 2.5;
      pen.strokeStyle = "#ffffff";
      pen.strokeRect(left, top, wide, high);
      const percent = (part) => `${(100 * part).toFixed(part < 0.1 ? 1 : 0)} %`;
      const [rows, columns] = layer.grid;
      const placeOf = (key) => say("place", { row: Math.floor(key / columns) + 1, column: key % columns + 1 });
      const text = [say("attends", { place: placeOf(token), rows, columns, count: inside })];
      if (best >= 0) {
        const where = keys[best] === token ? texts.itself : say("token", { place: placeOf(keys[best]) });
        text.push(say("largest", { weight: percent(largest * weights[best] / 255), where }));
      }
      if (elsewhere) text.push(say("elsewhere", { share: percent(elsewhere / all), where: layer.elsewhere }));
      caption.textContent = text.join(" ");
      scaleEnd.textContent = percent(largest);
      canvas.dataset.token = `${row},${column}`;
      canvas.dataset.drawn = String(mine);
    };

    const move = (nextX, nextY) => {
      x = Math.min(Math.max(nextX, 0), width - 0.01);
      y = Math.min(Math.max(nextY, 0), height - 0.01);
      draw();
    };
    canvas.addEventListener("click", (event) => {
      const bounds = canvas.getBoundingClientRect();
      move(
        (event.clientX - bounds.left) / bounds.width * width,
        (event.clientY - bounds.top) / bounds.height * height,
      );
    });
    const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      const way = STEPS[event.key];
      if (!way) return;
      event.preventDefault();
      const { row, column, step } = cellOf(layers[select.selectedIndex]);
      move((column + 0.5 + way[0]) * step[1], (row + 0.5 + way[1]) * step[0]);
    });
    select.addEventListener("change", draw);
    for (const button of explorer.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => {
        const next = select.selectedIndex + Number(button.dataset.step);
        select.selectedIndex = Math.min(Math.max(next, 0), layers.length - 1);
        draw();
      });
    }
    image.addEventListener("load", draw);
    image.src = document.getElementById(canvas.dataset.source).src;
  }
})();
