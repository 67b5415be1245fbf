"use strict";

// The page of one network. Python decided everything: #facts holds the geometry of each operation and each sentence.
// This script folds the one size formula over that geometry and shows what follows. Texts go in as texts only.

const facts = JSON.parse(document.getElementById("facts").textContent);
const find = (id) => document.getElementById(id);
const state = { stride: 0, sides: facts.input.slice(1), chosen: "", measured: null };

// ---------------------------------------------------------------------------------------------------- the size formula

const steps = (n, op) => (n + 2 * op.padding - op.dilation * (op.kernel - 1) - 1) / op.stride;

const RULES = {
  window: (n, op) => Math.floor(steps(n, op)) + 1,
  over: (n, op) => Math.ceil(steps(n, op)) + (Math.ceil(steps(n, op)) * op.stride >= n + op.padding ? 0 : 1),
  mirror: (n, op) => (n > op.padding ? RULES.window(n, op) : 0),
  ceil: (n, op) => Math.ceil(n / op.stride),
  same: (n) => n,
};

class Vanished extends Error {
  constructor(path, sides) {
    super(path);
    this.path = path;
    this.sides = sides;
  }
}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const sum = (items, key) => items.reduce((total, item) => total + item[key], 0);

// A position is the shape of a map (channels, then sides; a vector has none), its receptive field and its stride.

function run(tree, root, at) {
  return tree.children ? place(tree, root, at) : operation(tree, root, at);
}

function operation(tree, root, at) {
  const op = facts.operations[tree.operation];
  const sides = op.rule === "vector" ? [] : at.shape.slice(1).map((n) => RULES[op.rule](n, op));
  if (sides.some((n) => n < 1)) throw new Vanished(root + tree.path, at.shape.slice(1));
  const behind = {
    shape: [op.channels, ...sides],
    field: at.field + op.dilation * (op.kernel - 1) * at.stride,
    stride: at.stride * op.stride,
  };
  const macs = op.pixel * product(sides) + op.once;
  return { tree, path: root + tree.path, op, at, behind, params: op.params, macs, activations: product(behind.shape) };
}

function place(tree, root, at) {
  const parts = [];
  let now = at;
  for (const child of tree.children) {
    const done = run(child, root, child.forks ? at : now);
    parts.push(done);
    now = child.forks ? { ...now, field: Math.max(now.field, done.behind.field) } : done.behind;
  }
  return gathered({ tree, path: root + tree.path, at, behind: now, parts });
}

function gathered(part) {
  const counts = ["params", "macs", "activations"].map((key) => [key, sum(part.parts, key)]);
  return { ...part, ...Object.fromEntries(counts) };
}

function measure(strideIndex, sides) {
  let at = { shape: [facts.input[0], ...sides], field: 1, stride: 1 };
  const start = at;
  const places = facts.strides[strideIndex].parts.map((told) => {
    const before = at;
    const parts = told.boxes.map(([path, tree]) => {
      const box = { ...run(facts.trees[tree], path, at), told, number: tree };
      at = box.behind;
      return box;
    });
    return gathered({ told, tree: told, path: told.path, at: before, behind: at, parts });
  });
  return gathered({ path: "", at: start, behind: at, parts: places });
}

// --------------------------------------------------------------------------------------------------------------- words

const shape = (numbers) => numbers.join(" × ");
const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
const told = (number) => facts.sentences[number] || "";

function tenth(x) {
  return x % 1 === 0.25 ? String(Math.floor(x) + 0.2) : x.toFixed(1); // a tie goes to the even digit, as in Python
}

function share(part) {
  return part.macs ? tenth((100 * part.macs) / state.measured.macs) + "%" : "";
}

const isOwn = () => state.sides.every((n, i) => n === facts.input[i + 1]);
const saidFor = () => (isOwn() ? "" : `Said for images of ${shape(facts.input)}:`);

// ------------------------------------------------------------------------------------------------------------ elements

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function button(label, act, attributes = {}) {
  const made = make("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", act);
  return made;
}

function table(headings, rows, kind) {
  const head = make("tr", {}, ...headings.map((text) => make("th", { scope: "col" }, text)));
  return make("div", { class: "scroll" },
    make("table", { class: kind }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const row = (cells, attributes = {}) => make("tr", attributes, ...cells.map((cell) => make("td", {}, cell)));

// --------------------------------------------------------------------------------------------------------- the drawing

const marks = find("marks");
const boxes = [...marks.querySelectorAll(".box")];
const captions = [...marks.querySelectorAll(".caption")];
const boxOf = new Map(boxes.map((box) => [box.dataset.path, box]));

function way(start, end, top, middle) {
  const high = top - 14;
  const bend = Math.min(11, (end - start) / 2);
  return `M ${start} ${middle} V ${high + bend} Q ${start} ${high} ${start + bend} ${high} ` +
    `H ${end - bend} Q ${end} ${high} ${end} ${high + bend} V ${middle}`;
}

function stretch(box, part, most) {
  const middle = Number(box.dataset.middle);
  const side = Math.max(1, ...part.behind.shape.slice(1));
  const tall = Math.max(6, marks.dataset.tallest * Math.sqrt(side / Math.max(...state.sides)));
  const [start, end] = box.dataset.ends.split(" ").map(Number);
  const face = box.querySelector(".face");
  face.setAttribute("y", middle - tall / 2);
  face.setAttribute("height", tall);
  box.querySelector(".bar").setAttribute("height", (marks.dataset.bars * part.macs) / most);
  for (const line of box.querySelectorAll(".way")) line.setAttribute("d", way(start, end, middle - tall / 2, middle));
}

function name(mark, part) {
  const cost = share(part) && share(part) + " of MACs";
  const text = [part.path, shape(part.behind.shape), cost].filter(Boolean).join(", ");
  mark.setAttribute("aria-label", text);
  const title = mark.querySelector("title");
  if (title) title.textContent = text;
}

function redraw() {
  const drawn = state.measured.parts.flatMap((part) => part.parts);
  const most = heaviest(drawn);
  for (const part of drawn) {
    const box = boxOf.get(part.path);
    stretch(box, part, most);
    name(box, part);
  }
  state.measured.parts.forEach((part, i) => {
    const lines = captions[i].querySelectorAll("text");
    lines[1].textContent = shape(part.behind.shape);
    lines[2].textContent = share(part) && share(part) + " of MACs";
    name(captions[i], part);
  });
  find("image-shape").textContent = shape(state.measured.at.shape);
}

// ---------------------------------------------------------------------------------------------------- totals and parts

function totals() {
  const all = state.measured;
  find("total-params").textContent = grouped(all.params);
  find("total-macs").textContent = grouped(all.macs);
  find("total-field").textContent = all.behind.field;
  find("total-activations").textContent = grouped(all.activations);
  find("note-activations").textContent = tenth((all.activations * 4) / 2 ** 20) + " MiB in fp32";
}

function numbers(part) {
  const counts = [part.params, part.macs].map((n) => (n ? grouped(n) : ""));
  return [shape(part.behind.shape), ...counts, share(part)];
}

function parts() {
  const rows = find("parts").querySelectorAll("tbody tr");
  state.measured.parts.forEach((part, i) => {
    const seen = part.behind.shape.length > 1 ? [part.behind.field, part.behind.stride] : ["", ""];
    const cells = [part.told.what, ...numbers(part), ...seen];
    cells.forEach((text, j) => { rows[i].children[j + 1].textContent = text; });
  });
}

function sentences() {
  const lines = find("whys").querySelectorAll("dd");
  facts.strides[state.stride].parts.forEach((part, i) => { lines[i + 1].textContent = told(part.why); });
  const stride = facts.strides[state.stride].stride;
  const dilated = state.stride ? ` and output stride ${stride}` : "";
  find("said").textContent = `Said for images of ${shape(facts.input)}${dilated}.`;
}

function opened(path) {
  return button(path, () => choose(path, true), { class: "path" });
}

function linkParts() {
  for (const line of find("parts").querySelectorAll("tbody tr")) {
    line.firstChild.replaceChildren(opened(line.firstChild.textContent));
  }
}

// --------------------------------------------------------------------------------------------------------- the details

function chosenPart() {
  for (const part of state.measured.parts) {
    if (part.path === state.chosen && part.told.role === "stage") return part;
    const box = part.parts.find((inner) => inner.path === state.chosen);
    if (box) return box;
  }
  return state.measured.parts[0];
}

function details() {
  const part = chosenPart();
  const isStage = part.tree.role === "stage";
  find("chosen").textContent = part.path;
  find("told").textContent = summary(part);
  const left = make("div", { class: "telling" }, figures(part), ...reasons(part));
  const upper = make("div", { class: "upper" }, left, sight(part));
  find("more").replaceChildren(upper, ...(isStage ? blocks(part) : operations(part)));
}

function summary(part) {
  const way = shortcutOf(part);
  const what = part.tree.role === "block" ? "block" : part.tree.what || part.tree.role;
  return [what, way && `shortcut: ${way.tree.kind}`, share(part) && `${share(part)} of all MACs`].filter(Boolean).join(", ");
}

const shortcutOf = (part) => (part.parts || []).find((inner) => inner.tree.forks);

function figures(part) {
  const pairs = [
    ["in", shape(part.at.shape)],
    ["out", shape(part.behind.shape)],
    ["params", grouped(part.params)],
    ["MACs", grouped(part.macs)],
    ["share of MACs", share(part) || "none"],
    ["activations", grouped(part.activations)],
    ["receptive field", `${part.behind.field} px`],
    ["stride", `${part.behind.stride} px`],
  ];
  return make("dl", { class: "facts" },
    ...pairs.map(([key, value]) => make("div", { "data-key": key }, make("dt", {}, key), make("dd", {}, value))));
}

function reasons(part) {
  const way = shortcutOf(part);
  const lines = [told(part.tree.why)];
  if (way) lines.push(told(way.tree.why));
  const shown = lines.filter(Boolean).map((line) => make("p", {}, line));
  if (saidFor() && shown.length) shown.unshift(make("p", { class: "said" }, saidFor()));
  return way ? [cause(way), ...shown] : shown;
}

function cause(way) {
  const label = saidFor() ? `why (for ${shape(facts.input)})` : "why";
  const words = make("span", {}, make("b", {}, way.tree.kind), " — ", told(way.tree.reason));
  return make("p", { class: `cause ${way.tree.kind.replace(/ /g, "-")}` }, make("small", {}, label), words);
}

// ---------------------------------------------------------------------------------------- operations and their formula

function leaves(part) {
  return part.parts ? part.parts.flatMap(leaves) : [part];
}

function operations(part) {
  const formula = make("div", { id: "formula" });
  const lines = leaves(part);
  const rows = lines.map((leaf) => operationRow(part, leaf, formula, heaviest(lines)));
  const count = lines.length === 1 ? "1 operation" : `${lines.length} operations, in the order in which they run`;
  const shown = table(["path", "operation", "output", "params", "MACs", "share"], rows, "operations");
  const first = telling(lines);
  pick(rows[first], lines[first], formula);
  return [make("h3", {}, count), shown, formula];
}

function telling(lines) {
  const shrinks = lines.findIndex((leaf) => leaf.op.stride > 1);
  const looks = lines.findIndex((leaf) => leaf.op.kernel > 1);
  return Math.max(0, shrinks < 0 ? looks : shrinks);
}

const heaviest = (parts) => Math.max(...parts.map((part) => part.macs)) || 1;

function operationRow(part, leaf, formula, most) {
  const path = leaf.path.slice(part.path.length + 1) || leaf.path;
  const line = row(["", leaf.op.text, ...numbers(leaf)], { "data-path": leaf.path });
  line.className = path.startsWith("shortcut") ? "on-shortcut" : "";
  line.firstChild.append(button(path, () => pick(line, leaf, formula), { class: "path", "aria-pressed": "false" }));
  if (leaf.macs) line.lastChild.prepend(portion(leaf, most));
  return line;
}

function portion(leaf, most) {
  const width = (36 * leaf.macs) / most;
  return draw("svg", { class: "portion", width: 36, height: 8, "aria-hidden": "true" },
    draw("rect", { width: 36, height: 8, rx: 2, class: "whole" }), draw("rect", { width, height: 8, rx: 2 }));
}

function pick(line, leaf, formula) {
  for (const other of line.parentNode.children) {
    other.querySelector("button").setAttribute("aria-pressed", String(other === line));
  }
  const sentence = told(leaf.tree.why);
  const why = [saidFor(), sentence].filter(Boolean).join(" ");
  const axes = leaf.at.shape.length > 2 && leaf.at.shape[1] !== leaf.at.shape[2] ? ["height", "width"] : ["side"];
  formula.replaceChildren(make("h3", {}, `The size behind ${leaf.path}`),
    ...axes.map((axis, i) => sizes(leaf, i, axes.length > 1 ? axis : "")), make("p", {}, why));
}

function sizes(leaf, axis, label) {
  const [n, out] = [leaf.at.shape[axis + 1], leaf.behind.shape[axis + 1]];
  const written = { window: windowed, mirror: windowed, over: windowed, ceil: divided }[leaf.op.rule];
  if (!written) return make("p", { class: "plainly" }, plainly(leaf.op, n, out));
  const columns = written(leaf.op, n, out);
  const cell = (text, kind) => make("td", { class: kind }, String(text));
  const line = (i) => make("tr", {}, ...columns.map((column) => cell(column[i], column[2] && `term ${column[2]}`)));
  const names = make("tr", { class: "names" }, ...columns.map((column) => cell(column[3], column[2])));
  const body = make("tbody", {}, line(0), line(1), names);
  return make("div", { class: "scroll" }, make("table", { class: "formula", "aria-label": label || "size" },
    ...(label ? [make("caption", {}, label)] : []), body));
}

function windowed(op, n, out) {
  const same = (text) => [text, text, "", ""];
  const [open, close] = op.rule === "over" ? ["⌈", "⌉"] : ["⌊", "⌋"];
  return [["out", out, "out", "output"], same(`= ${open}(`), ["in", n, "in", "input"], same("+ 2 ×"),
    ["p", op.padding, "p", "padding"], same("−"), ["d", op.dilation, "d", "dilation"], same("× ("),
    ["k", op.kernel, "k", "kernel"], same("− 1) − 1) /"), ["s", op.stride, "s", "stride"], same(`${close} + 1`)];
}

function divided(op, n, out) {
  const same = (text) => [text, text, "", ""];
  return [["out", out, "out", "output"], same("= ⌈"), ["in", n, "in", "input"], same("/"), ["s", op.stride, "s", "stride"],
    same("⌉")];
}

function plainly(op, n, out) {
  if (op.text === "branch + shortcut") return `Two maps of ${n} are added, number by number.`;
  if (!n) return "A vector comes in and a vector goes out.";
  if (op.rule === "vector") return "The map becomes a vector: it has no side behind this operation.";
  return `Each output sees one input, so the size stays: ${n} → ${out}.`;
}

// ----------------------------------------------------------------------------------------------- the blocks of a stage

function runsOf(part) {
  const runs = [];
  for (const box of part.parts) {
    const last = runs[runs.length - 1];
    if (last && last[0].number === box.number) last.push(box);
    else runs.push([box]);
  }
  return runs;
}

function blocks(part) {
  const rows = runsOf(part).map((alike) => {
    const line = row(["", alike[0].tree.what, ...numbers(alike[0])]);
    line.firstChild.append(opened(alike[0].path));
    if (alike.length > 1) line.firstChild.append(` to ${alike[alike.length - 1].path.split(".").pop()}, each`);
    line.lastChild.prepend(portion(alike[0], heaviest(part.parts)));
    return line;
  });
  const heading = make("h3", {}, `${part.parts.length} part${part.parts.length === 1 ? "" : "s"}`);
  return [heading, table(["path", "shortcut", "output", "params", "MACs", "share"], rows, "operations")];
}

// ------------------------------------------------------------------------------------------------- the receptive field

function sight(part) {
  const [height, width] = state.sides;
  const scale = 240 / Math.max(height, width);
  const [w, h] = [width * scale, height * scale];
  const half = { field: (part.behind.field * scale) / 2, stride: (part.behind.stride * scale) / 2 };
  const seen = clipped(w, h, half.field);
  const ground = `M0 0H${w}V${h}H0Z M${seen.x} ${seen.y}v${seen.height}h${seen.width}v${-seen.height}Z`;
  const clearly = part.behind.field >= Math.max(height, width);
  const frame = { class: "sight", viewBox: `-2 -2 ${w + 4} ${h + 4}`, width: w + 4, height: h + 4, role: "img" };
  const picture = draw("svg", { ...frame, "aria-label": fieldWords(part) },
    draw("use", { href: "#scene", width: w, height: h }),
    draw("path", { class: "unseen", d: ground, "fill-rule": "evenodd" }),
    draw("rect", { class: clearly ? "field beyond" : "field", ...seen }),
    draw("rect", { class: "step", ...clipped(w, h, half.stride) }));
  return make("figure", { class: "seeing" }, picture, make("figcaption", {}, fieldWords(part)));
}

function clipped(w, h, half) {
  const [x, y] = [Math.max(0, w / 2 - half), Math.max(0, h / 2 - half)];
  return { x, y, width: w - 2 * x, height: h - 2 * y };
}

function fieldWords(part) {
  const { field, stride } = part.behind;
  if (part.behind.shape.length === 1) return "A vector has no pixels: each number of it has seen the whole image.";
  const larger = field > Math.min(...state.sides) ? ", larger than the image" : "";
  return `One pixel of this map sees ${field} × ${field} pixels${larger}. The next one looks ${stride} further.`;
}

// ------------------------------------------------------------------------------------------------------------ choosing

function choose(path, scrolls) {
  state.chosen = path;
  const all = [...boxes, ...captions];
  for (const mark of all) mark.toggleAttribute("aria-current", false);
  for (const row of [boxes, captions]) {
    const current = row.find((mark) => mark.dataset.path === path);
    if (current) current.setAttribute("aria-current", "true");
    if (current) for (const mark of row) mark.setAttribute("tabindex", mark === current ? "0" : "-1");
  }
  const box = boxes.find((mark) => mark.dataset.path === path);
  if (box) reveal(box);
  if (state.measured) details();
  if (scrolls) find("details").scrollIntoView({ block: "nearest" });
}

function reveal(box) {
  const frame = box.closest(".scroll");
  const [there, here] = [frame.getBoundingClientRect(), box.getBoundingClientRect()];
  if (here.left >= there.left && here.right <= there.right) return;
  frame.scrollLeft += here.left - there.left - (there.width - here.width) / 2;
}

function step(by) {
  const current = boxes.findIndex((box) => box.dataset.path === state.chosen);
  const stage = boxes.findIndex((box) => box.dataset.path.startsWith(state.chosen + "."));
  const from = current < 0 ? stage - (by > 0 ? 1 : 0) : current;
  const next = boxes[Math.min(boxes.length - 1, Math.max(0, from + by))];
  choose(next.dataset.path, false);
  return next;
}

const MOVES = {
  ArrowRight: (row, i) => row[Math.min(row.length - 1, i + 1)],
  ArrowLeft: (row, i) => row[Math.max(0, i - 1)],
  Home: (row) => row[0],
  End: (row) => row[row.length - 1],
  Enter: (row, i) => row[i],
  " ": (row, i) => row[i],
  ArrowDown: (row, i) => captions.find((mark) => owns(mark, row[i])) || row[i],
  ArrowUp: (row, i) => boxes.find((mark) => owns(row[i], mark)) || row[i],
};

function owns(caption, box) {
  return box.dataset.path === caption.dataset.path || box.dataset.path.startsWith(caption.dataset.path + ".");
}

function keyed(event) {
  const mark = event.target.closest("[data-path]");
  const row = boxes.includes(mark) ? boxes : captions;
  if (!mark || !(event.key in MOVES) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const next = MOVES[event.key](row, row.indexOf(mark));
  choose(next.dataset.path, false);
  next.focus();
  next.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function ready(row) {
  row.forEach((mark, i) => {
    mark.setAttribute("role", "button");
    mark.setAttribute("tabindex", i ? "-1" : "0");
    mark.addEventListener("click", () => choose(mark.dataset.path, false));
  });
}

// ------------------------------------------------------------------------------------------------------------ controls

function update() {
  try {
    state.measured = measure(state.stride, state.sides);
    shown(true);
    [totals, redraw, parts, sentences, details].forEach((show) => show());
  } catch (error) {
    if (!(error instanceof Vanished)) throw error;
    vanished(error);
  }
}

function shown(there) {
  document.body.classList.toggle("gone", !there);
  find("vanished").hidden = there;
  find("details").hidden = !there;
}

function vanished(error) {
  shown(false);
  find("vanished").textContent = `For an image of ${shape(state.sides)} the map vanishes at ${error.path}: ` +
    `of ${shape(error.sides)} nothing is left. Choose a larger image.`;
  for (const key of ["macs", "field", "activations"]) find(`total-${key}`).textContent = "—";
  find("note-activations").textContent = "";
  for (const cell of find("parts").querySelectorAll("tbody td:nth-child(n + 3)")) cell.textContent = "—";
}

function resize(text, from) {
  const side = Math.round(Number(text));
  const most = Number(find("size").max);
  if (!text || Number(text) !== side || side < 1 || side > most) {
    find("vanished").textContent = `The size is a whole number from 1 to ${most}; what is shown is for ${shape(state.sides)}.`;
    find("vanished").hidden = false;
    return;
  }
  state.sides = [side, side];
  for (const control of [find("slider"), find("size")]) if (control !== from) control.value = side;
  update();
}

function own() {
  state.sides = facts.input.slice(1);
  find("slider").value = find("size").value = Math.max(...state.sides);
  update();
}

function begin() {
  ready(boxes);
  ready(captions);
  marks.parentNode.setAttribute("role", "group");
  marks.addEventListener("keydown", keyed);
  linkParts();
  for (const control of [find("slider"), find("size")]) {
    control.addEventListener("input", () => resize(control.value, control));
  }
  find("own").addEventListener("click", own);
  for (const choice of document.getElementsByName("stride")) {
    choice.addEventListener("change", () => { state.stride = Number(choice.value); update(); });
  }
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  for (const id of ["controls", "hint"]) find(id).hidden = false;
  const marked = marks.querySelector(".way:not(.identity)") || marks.querySelector(".way");
  choose((marked ? marked.closest(".box") : boxes[Math.min(1, boxes.length - 1)]).dataset.path, false);
  update();
}

begin();
