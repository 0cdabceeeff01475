(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const measured = JSON.parse(document.getElementById("measured").textContent);
  const root = document.documentElement, theme = document.getElementById("theme");

  function setTheme(name) {
    root.dataset.theme = name;
    theme.textContent = name === "dark" ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(name === "dark"));
  }
  let kept = null;
  try { kept = localStorage.getItem("attnproof-theme"); } catch (error) { kept = null; }
  setTheme(kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  theme.addEventListener("click", () => {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("attnproof-theme", root.dataset.theme); } catch (error) { /* a page from disk may keep nothing */ }
  });

  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b), numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
        return (numbers ? x - y : x.localeCompare(y, undefined, { numeric: true })) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    }));
  });

  const SVG = "http://www.w3.org/2000/svg";
  function svg(tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function graph(drawing, title, leftOut) {
    const made = element("figure"), box = element("div", null, "graph");
    made.append(element("figcaption", title + (leftOut ? " (" + leftOut + " nodes further off are not drawn)" : "")), box);
    if (!drawing) { box.append(element("p", "It is not in the main graph.", "quiet")); return made; }
    box.tabIndex = 0; box.setAttribute("role", "group"); box.setAttribute("aria-label", title + ", scrollable");
    if (drawing.width > 530) made.className = "full";
    const picture = svg("svg", { width: drawing.width, height: drawing.height, viewBox: `0 0 ${drawing.width} ${drawing.height}`, role: "img", "aria-label": title + ": " + drawing.nodes.filter((n) => n.op).length + " nodes" });
    for (const points of drawing.edges) {
      let path = `M${points[0][0]},${points[0][1] + 19}`;
      for (let i = 1; i < points.length; i++) {
        const [x0, y0] = points[i - 1], [x1, y1] = points[i], last = i === points.length - 1, top = y1 - (last ? 19 : 0), from = y0 + (i === 1 ? 19 : 0);
        path += `C${x0},${(from + top) / 2} ${x1},${(from + top) / 2} ${x1},${top}`;
      }
      picture.append(svg("path", { d: path, class: "edge" }));
    }
    for (const node of drawing.nodes) {
      const group = svg("g", { class: (node.op ? (node.kind ? "read " : "") + node.kind : "tensor") });
      group.append(svg("title", {}, [node.name, node.op, node.note, node.shape].filter(Boolean).join("\n")));
      group.append(svg("rect", { x: node.x - node.w / 2, y: node.y - 19, width: node.w, height: 38, rx: node.op ? 5 : 19 }));
      group.append(svg("text", { x: node.x, y: node.y + (node.small ? -2 : 4) }, node.label));
      if (node.small) group.append(svg("text", { x: node.x, y: node.y + 12, class: "small" }, node.small));
      picture.append(group);
    }
    box.append(picture);
    return made;
  }

  function section(body, title) { body.append(element("h3", title)); }
  function list(body, items, className) {
    const made = element("ul", null, className);
    items.forEach((item) => made.append(element("li", item)));
    body.append(made);
  }
  function maps(body, weights) {
    const [rows, columns] = weights.cells, cells = rows * columns;
    section(body, "What each query sees");
    const seen = figure(heat(decoded(weights.seen.cells), rows, columns, "keys that each query sees"), `${weights.queries} queries (down) x ${weights.keys} keys (across); light: seen, dark: hidden, between: by some heads; element ${weights.element} of the batch, where most is hidden`);
    body.append(seen);
    section(body, "Attention weights, by head");
    body.append(element("p", `Queries down, keys across; element ${weights.element} of the batch${measured ? "; " + Object.entries(measured.sizes).map(([n, s]) => n + " " + s).join(", ") : ""}. Pink is NaN.`, "quiet"));
    if (measured) list(body, ["reference: " + measured.reference, "fused: " + measured.fused], "quiet");
    body.append(scalebar(weights.reference.peak, "weight"));
    if (weights.difference) body.append(scalebar(weights.difference.peak, "difference, its largest"));
    else body.append(element("p", "The fused operator has keys or heads that the reference has not (a sink, merged heads): no difference is drawn.", "quiet"));
    const all = element("div", null, "heads");
    const kinds = ["reference", "fused", "difference"].filter((kind) => weights[kind]);
    const bytes = Object.fromEntries(kinds.map((kind) => [kind, decoded(weights[kind].cells)]));
    for (let head = 0; head < weights.heads; head++) {
      const one = element("div"), three = element("div", null, "head-maps");
      for (const kind of kinds) three.append(figure(heat(bytes[kind].subarray(head * cells, (head + 1) * cells), rows, columns, `head ${head}, ${kind}`), kind));
      one.append(element("strong", `head ${head}`), three);
      all.append(one);
    }
    body.append(all);
  }
  const rounded = (value) => typeof value === "number" ? Number(value.toPrecision(9)) : value;
  function errors(body, error) {
    section(body, "Errors of the fused graph");
    const where = error.worst ? ` The largest, ${error.max.toExponential(2)}, is at [${error.worst.join(", ")}]: ${rounded(error.actual)}, reference ${rounded(error.expected)}.` : "";
    const lost = error.misplaced ? ` ${error.misplaced} elements are NaN or infinite on one side only.` : "";
    body.append(element("p", `|fused - reference| over ${error.elements} elements of '${error.tensor}'; ${error.zeros} are equal.${where}${lost}`));
    const first = error.counts.findIndex(Boolean);
    if (first < 0) return;
    const last = error.counts.length - 1 - [...error.counts].reverse().findIndex(Boolean), top = Math.max(...error.counts);
    const bars = element("div", null, "histogram");
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", "histogram of errors by decade");
    for (let i = Math.max(0, first - 1); i <= Math.min(error.counts.length - 1, last + 1); i++) {
      const column = element("div"), bar = element("i");
      bar.style.height = (100 * error.counts[i]) / top + "px";
      column.append(element("span", error.counts[i] || ""), bar, element("span", "1e" + (error.decades[0] + i)));
      bars.append(column);
    }
    body.append(bars);
    body.append(element("p", "How many elements are off by how much; the bar at 1e-5 counts errors from 1e-5 to 1e-4.", "quiet"));
  }

  const drawer = document.getElementById("drawer"), body = document.getElementById("drawer-body");
  function open(block) {
    document.getElementById("drawer-title").textContent = block.name;
    body.replaceChildren();
    body.append(element("p", block.reason));
    if (block.change) body.append(element("p", "To change: " + block.change));
    if (block.source) { const line = element("p"); line.append("Source: ", element("code", block.source)); body.append(line); }
    const facts = element("dl");
    block.facts.forEach(([name, value]) => facts.append(element("dt", name), element("dd", value)));
    body.append(facts);
    section(body, "Its nodes");
    const pair = element("div", null, "pair");
    pair.append(graph(block.before, "Before", block.left_out.before), graph(block.after, "After", block.left_out.after));
    body.append(pair);
    if (block.trail.length) {
      section(body, "How it was read");
      const steps = element("ol", null, "trail");
      for (const read of block.trail) {
        const item = element("li");
        item.append(element("span", read.kind, "key " + read.kind), " ", element("code", read.op + " " + read.node), " " + read.words);
        steps.append(item);
      }
      body.append(steps);
    }
    section(body, "Rotary embeddings");
    if (block.rope.length) list(body, block.rope); else body.append(element("p", "None near it.", "quiet"));
    section(body, "Casts near it");
    const casts = [...block.casts.before.map((c) => "before: " + c), ...block.casts.after.map((c) => "after: " + c)];
    if (casts.length) list(body, casts); else body.append(element("p", "None.", "quiet"));
    if (block.lowering.length) { section(body, "Lowered for the target"); list(body, block.lowering); }
    if (block.error) errors(body, block.error);
    if (block.weights) maps(body, block.weights);
    else { section(body, "Attention weights"); body.append(element("p", "NOT RUN: " + block.not_run)); }
    drawer.showModal();
    drawer.scrollTop = 0;
  }
  document.querySelectorAll(".open").forEach((button) => button.addEventListener("click", () => open(data[button.dataset.block])));
  document.getElementById("close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });
})();
