(() => {
  const [blocks, labels] = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement, theme = document.getElementById("theme"), cell = document.getElementById("cell");
  const setTheme = (name) => {
    root.dataset.theme = name; theme.textContent = name === "dark" ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(name === "dark"));
  };
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  const named = (at) => labels[at] !== undefined ? `${at} '${labels[at]}'` : String(at);
  function side(count, offset, across) {
    const made = element("div", null, across ? "labels across" : "labels");
    for (let i = 0; i < count; i++) made.append(element("span", labels[i + offset] ?? ""));
    return made;
  }
  blocks.forEach((block, index) => {
    const place = document.getElementById("block" + index), all = element("div", null, "heads"), bytes = decoded(block.map.cells);
    const [rows, columns] = block.cells, whole = rows === block.queries && columns === block.keys;
    const offset = labels.length >= block.keys && block.keys >= block.queries ? block.keys - block.queries : 0;
    place.append(scalebar(block.map.peak, "weight"));
    for (let head = 0; head < block.heads; head++) {
      const part = bytes.subarray(head * rows * columns, (head + 1) * rows * columns);
      const canvas = heat(part, rows, columns, `${block.name}, head ${head}`);
      canvas.addEventListener("mousemove", (event) => {
        const box = canvas.getBoundingClientRect();
        const row = Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows));
        const column = Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns));
        const byte = part[row * columns + column];
        const query = Math.floor((row * block.queries) / rows), key = Math.floor((column * block.keys) / columns);
        const value = byte === NONE ? "NaN" : ((byte / 254) * block.map.peak).toPrecision(3);
        cell.textContent = `${block.name}, head ${head}: query ${named(query + offset)}, key ${named(key)}: ${value}`;
      });
      const one = element("figure");
      one.append(element("figcaption", "head " + head));
      if (labels.length && whole && Math.max(rows, columns) <= 64) {
        const grid = element("div", null, "labelled");
        grid.append(side(rows, offset, false), canvas, side(columns, 0, true));
        one.append(grid);
      } else one.append(canvas);
      all.append(one);
    }
    place.append(all);
  });
})();
