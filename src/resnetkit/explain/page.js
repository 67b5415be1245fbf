"use strict";

// The page of one network. Python decided everything: #network-data holds the geometry of each operation and each
// sentence. This script applies the size formula to that geometry and shows the result. All text is set as text only.

const network = JSON.parse(document.getElementById("network-data").textContent);
const byId = (id) => document.getElementById(id);
const state = { variant: 0, sides: network.input.slice(1), selectedPath: "", measured: null };

// ---------------------------------------------------------------------------------------------------- the size formula

const windowSteps = (n, op) => (n + 2 * op.padding - op.dilation * (op.kernel - 1) - 1) / op.stride;

// As torch: a window that extends beyond the map must not start in the padding after it.
function windowCeil(n, op) {
  const steps = Math.ceil(windowSteps(n, op));
  return steps + (steps * op.stride >= n + op.padding ? 0 : 1);
}

const SIZE_RULES = {
  window: (n, op) => Math.floor(windowSteps(n, op)) + 1,
  "window-ceil": windowCeil,
  "window-reflect": (n, op) => (n > op.padding ? SIZE_RULES.window(n, op) : 0),
  "divide-ceil": (n, op) => Math.ceil(n / op.stride),
  same: (n) => n,
};

class EmptyMapError extends Error {
  constructor(path, sides) {
    super(path);
    this.path = path;
    this.sides = sides;
  }
}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const sumOf = (items, key) => items.reduce((total, item) => total + item[key], 0);

// The input and output of a part are {shape, field, stride}: the shape of a map (channels, then sides; a vector has no
// sides), its receptive field and its stride, both in pixels of the image.

function measureTree(tree, boxPath, input) {
  return tree.children ? measureSection(tree, boxPath, input) : measureOperation(tree, boxPath, input);
}

function measureOperation(tree, boxPath, input) {
  const op = network.operations[tree.operation];
  const sides = op.rule === "vector" ? [] : input.shape.slice(1).map((n) => SIZE_RULES[op.rule](n, op));
  const path = boxPath + tree.path;
  if (sides.some((n) => n < 1)) throw new EmptyMapError(path, input.shape.slice(1));
  const output = {
    shape: [op.channels, ...sides],
    field: input.field + op.dilation * (op.kernel - 1) * input.stride,
    stride: input.stride * op.stride,
  };
  const macs = op.macs_per_pixel * product(sides) + op.macs_fixed;
  return { tree, path, op, input, output, params: op.params, macs, activations: product(output.shape) };
}

function measureSection(tree, boxPath, input) {
  const parts = [];
  let current = input;
  for (const child of tree.children) {
    const isShortcut = "shortcut_kind" in child; // it starts at the input of its block
    const part = measureTree(child, boxPath, isShortcut ? input : current);
    parts.push(part);
    current = isShortcut ? { ...current, field: Math.max(current.field, part.output.field) } : part.output;
  }
  return withTotals({ tree, path: boxPath + tree.path, input, output: current, parts });
}

function withTotals(part) {
  const totals = ["params", "macs", "activations"].map((key) => [key, sumOf(part.parts, key)]);
  return { ...part, ...Object.fromEntries(totals) };
}

function measureNetwork(variant, sides) {
  const input = { shape: [network.input[0], ...sides], field: 1, stride: 1 };
  let current = input;
  const groups = network.variants[variant].parts.map((info) => {
    const groupInput = current;
    const parts = info.boxes.map(([path, treeIndex]) => {
      const box = { ...measureTree(network.trees[treeIndex], path, current), treeIndex };
      current = box.output;
      return box;
    });
    return withTotals({ tree: info, path: info.path, input: groupInput, output: current, parts });
  });
  return withTotals({ path: "", input, output: current, parts: groups });
}

// ---------------------------------------------------------------------------------------------------------------- text

const formatShape = (numbers) => numbers.join(" × ");
const formatCount = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
const getSentence = (index) => network.sentences[index] || "";

function formatTenths(x) {
  return x % 1 === 0.25 ? String(Math.floor(x) + 0.2) : x.toFixed(1); // a tie goes to the even digit, as in Python
}

function formatShare(part) {
  return part.macs ? formatTenths((100 * part.macs) / state.measured.macs) + "%" : "";
}

const formatShareOfMacs = (part) => (part.macs ? formatShare(part) + " of MACs" : "");
const isOriginalSize = () => state.sides.every((n, i) => n === network.input[i + 1]);
const formatSizeNote = () => (isOriginalSize() ? "" : `For images of ${formatShape(network.input)}:`);

// ------------------------------------------------------------------------------------------------------------ elements

function setUp(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const createHtml = (tag, attributes, ...children) => setUp(document.createElement(tag), attributes, children);
const createSvg = (tag, attributes, ...children) =>
  setUp(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function createButton(label, onClick, attributes = {}) {
  const button = createHtml("button", { type: "button", ...attributes }, label);
  button.addEventListener("click", onClick);
  return button;
}

function createTable(headings, rows, cssClass) {
  const head = createHtml("tr", {}, ...headings.map((text) => createHtml("th", { scope: "col" }, text)));
  return createHtml("div", { class: "scroll" }, createHtml("table", { class: cssClass },
    createHtml("thead", {}, head), createHtml("tbody", {}, ...rows)));
}

const createRow = (cells, attributes = {}) =>
  createHtml("tr", attributes, ...cells.map((cell) => createHtml("td", {}, cell)));

// --------------------------------------------------------------------------------------------------------- the drawing

const drawing = byId("drawing");
const boxes = [...drawing.querySelectorAll(".box")];
const captions = [...drawing.querySelectorAll(".caption")];
const boxByPath = new Map(boxes.map((box) => [box.dataset.path, box]));

function buildArcPath(start, end, top, centerY) {
  const peak = top - 14;
  const radius = Math.min(11, (end - start) / 2);
  return `M ${start} ${centerY} V ${peak + radius} Q ${start} ${peak} ${start + radius} ${peak} ` +
    `H ${end - radius} Q ${end} ${peak} ${end} ${peak + radius} V ${centerY}`;
}

function resizeBox(box, part, maxMacs) {
  const centerY = Number(box.dataset.centerY);
  const side = Math.max(1, ...part.output.shape.slice(1));
  const height = Math.max(6, drawing.dataset.maxHeight * Math.sqrt(side / Math.max(...state.sides)));
  const top = centerY - height / 2;
  const [start, end] = box.dataset.arcEnds.split(" ").map(Number);
  const body = box.querySelector(".body");
  body.setAttribute("y", top);
  body.setAttribute("height", height);
  box.querySelector(".bar").setAttribute("height", (drawing.dataset.maxBarHeight * part.macs) / maxMacs);
  for (const arc of box.querySelectorAll(".arc")) arc.setAttribute("d", buildArcPath(start, end, top, centerY));
}

function setLabel(mark, part) {
  const text = [part.path, formatShape(part.output.shape), formatShareOfMacs(part)].filter(Boolean).join(", ");
  mark.setAttribute("aria-label", text);
  const title = mark.querySelector("title");
  if (title) title.textContent = text;
}

function updateDrawing() {
  const parts = state.measured.parts.flatMap((group) => group.parts);
  const maxMacs = getMaxMacs(parts);
  for (const part of parts) {
    const box = boxByPath.get(part.path);
    resizeBox(box, part, maxMacs);
    setLabel(box, part);
  }
  state.measured.parts.forEach((group, i) => {
    const lines = captions[i].querySelectorAll("text");
    lines[1].textContent = formatShape(group.output.shape);
    lines[2].textContent = formatShareOfMacs(group);
    setLabel(captions[i], group);
  });
  byId("image-shape").textContent = formatShape(state.measured.input.shape);
}

// ---------------------------------------------------------------------------------------------------- totals and parts

function updateTotals() {
  const total = state.measured;
  byId("total-params").textContent = formatCount(total.params);
  byId("total-macs").textContent = formatCount(total.macs);
  byId("total-receptive-field").textContent = total.output.field;
  byId("total-activations").textContent = formatCount(total.activations);
  byId("note-activations").textContent = formatTenths((total.activations * 4) / 2 ** 20) + " MiB in fp32";
}

function formatCells(part) {
  const counts = [part.params, part.macs].map((n) => (n ? formatCount(n) : ""));
  return [formatShape(part.output.shape), ...counts, formatShare(part)];
}

function updateParts() {
  const rows = byId("parts").querySelectorAll("tbody tr");
  state.measured.parts.forEach((part, i) => {
    const position = part.output.shape.length > 1 ? [part.output.field, part.output.stride] : ["", ""];
    const cells = [part.tree.description, ...formatCells(part), ...position];
    cells.forEach((text, j) => { rows[i].children[j + 1].textContent = text; });
  });
}

function updateReasons() {
  const lines = byId("reasons").querySelectorAll("dd");
  const variant = network.variants[state.variant];
  variant.parts.forEach((part, i) => { lines[i + 1].textContent = getSentence(part.why); });
  const stride = state.variant ? ` and output stride ${variant.output_stride}` : "";
  byId("size-note").textContent = `The sizes are for images of ${formatShape(network.input)}${stride}.`;
}

function createPathButton(path) {
  return createButton(path, () => selectPart(path, true), { class: "path-button" });
}

function linkParts() {
  for (const row of byId("parts").querySelectorAll("tbody tr")) {
    row.firstChild.replaceChildren(createPathButton(row.firstChild.textContent));
  }
}

// --------------------------------------------------------------------------------------------------------- the details

function getSelectedPart() {
  for (const group of state.measured.parts) {
    if (group.path === state.selectedPath && group.tree.role === "stage") return group;
    const box = group.parts.find((part) => part.path === state.selectedPath);
    if (box) return box;
  }
  return state.measured.parts[0];
}

function updateDetails() {
  const part = getSelectedPart();
  byId("selected-path").textContent = part.path;
  byId("summary").textContent = formatSummary(part);
  const explanation = createHtml("div", { class: "explanation" }, createStats(part), ...createReasons(part));
  const top = createHtml("div", { class: "details-top" }, explanation, createFieldFigure(part));
  const table = part.tree.role === "stage" ? createBlockTable(part) : createOperationTable(part);
  byId("details-body").replaceChildren(top, ...table);
}

function formatSummary(part) {
  const shortcut = getShortcut(part);
  const description = part.tree.role === "block" ? "block" : part.tree.description || part.tree.role;
  const kind = shortcut && `shortcut: ${shortcut.tree.shortcut_kind}`;
  return [description, kind, part.macs && `${formatShare(part)} of all MACs`].filter(Boolean).join(", ");
}

const getShortcut = (part) => (part.parts || []).find((child) => "shortcut_kind" in child.tree);

function createStats(part) {
  const pairs = [
    ["in", formatShape(part.input.shape)],
    ["out", formatShape(part.output.shape)],
    ["params", formatCount(part.params)],
    ["MACs", formatCount(part.macs)],
    ["share of MACs", formatShare(part) || "none"],
    ["activations", formatCount(part.activations)],
    ["receptive field", `${part.output.field} px`],
    ["stride", `${part.output.stride} px`],
  ];
  return createHtml("dl", { class: "stats" }, ...pairs.map(([key, value]) =>
    createHtml("div", { "data-key": key }, createHtml("dt", {}, key), createHtml("dd", {}, value))));
}

function createReasons(part) {
  const shortcut = getShortcut(part);
  const sentences = [part, shortcut].map((explained) => explained && getSentence(explained.tree.why)).filter(Boolean);
  const lines = sentences.map((sentence) => createHtml("p", {}, sentence));
  const note = formatSizeNote();
  if (note && lines.length) lines.unshift(createHtml("p", { class: "size-note" }, note));
  return shortcut ? [createCause(shortcut), ...lines] : lines;
}

function createCause(shortcut) {
  const kind = shortcut.tree.shortcut_kind;
  const label = isOriginalSize() ? "why" : `why (for ${formatShape(network.input)})`;
  const text = createHtml("span", {}, createHtml("b", {}, kind), " — ", getSentence(shortcut.tree.reason));
  return createHtml("p", { class: `cause ${kind.replace(/ /g, "-")}` }, createHtml("small", {}, label), text);
}

// ---------------------------------------------------------------------------------------- operations and their formula

function listOperations(part) {
  return part.parts ? part.parts.flatMap(listOperations) : [part];
}

function createOperationTable(part) {
  const formula = createHtml("div", { id: "formula" });
  const operations = listOperations(part);
  const maxMacs = getMaxMacs(operations);
  const rows = operations.map((operation) => createOperationRow(part, operation, formula, maxMacs));
  const count = operations.length === 1 ? "1 operation" : `${operations.length} operations, in the order of execution`;
  const table = createTable(["path", "operation", "output", "params", "MACs", "share"], rows, "operations");
  const first = findFirstToShow(operations);
  selectOperation(rows[first], operations[first], formula);
  return [createHtml("h3", {}, count), table, formula];
}

function findFirstToShow(operations) {
  const strided = operations.findIndex((operation) => operation.op.stride > 1);
  const windowed = operations.findIndex((operation) => operation.op.kernel > 1);
  return Math.max(0, strided < 0 ? windowed : strided);
}

const getMaxMacs = (parts) => Math.max(...parts.map((part) => part.macs)) || 1;

function createOperationRow(part, operation, formula, maxMacs) {
  const path = operation.path.slice(part.path.length + 1) || operation.path;
  const row = createRow(["", operation.op.text, ...formatCells(operation)], { "data-path": operation.path });
  row.className = path.startsWith("shortcut") ? "on-shortcut" : "";
  const attributes = { class: "path-button", "aria-pressed": "false" };
  row.firstChild.append(createButton(path, () => selectOperation(row, operation, formula), attributes));
  if (operation.macs) row.lastChild.prepend(createMacsBar(operation, maxMacs));
  return row;
}

function createMacsBar(part, maxMacs) {
  const width = (36 * part.macs) / maxMacs;
  return createSvg("svg", { class: "macs-bar", width: 36, height: 8, "aria-hidden": "true" },
    createSvg("rect", { width: 36, height: 8, rx: 2, class: "track" }), createSvg("rect", { width, height: 8, rx: 2 }));
}

function selectOperation(row, operation, formula) {
  for (const sibling of row.parentNode.children) {
    sibling.querySelector("button").setAttribute("aria-pressed", String(sibling === row));
  }
  const why = [formatSizeNote(), getSentence(operation.tree.why)].filter(Boolean).join(" ");
  const [, height, width] = operation.input.shape;
  const axes = height === width ? ["side"] : ["height", "width"];
  formula.replaceChildren(createHtml("h3", {}, `Output size of ${operation.path}`),
    ...axes.map((axis, i) => createSizeFormula(operation, i, axes.length > 1 ? axis : "")), createHtml("p", {}, why));
}

function createSizeFormula(operation, axis, label) {
  const [n, out] = [operation.input.shape[axis + 1], operation.output.shape[axis + 1]];
  const columns = listFormulaColumns(operation.op, n, out);
  if (!columns) return createHtml("p", { class: "formula-note" }, describeSize(operation.op, n, out));
  const createCell = (text, cssClass) => createHtml("td", { class: cssClass }, String(text));
  const createLine = (i) => createHtml("tr", {},
    ...columns.map((column) => createCell(column[i], column[2] && `term ${column[2]}`)));
  const names = createHtml("tr", { class: "names" }, ...columns.map((column) => createCell(column[3], column[2])));
  const caption = label ? [createHtml("caption", {}, label)] : [];
  return createHtml("div", { class: "scroll" },
    createHtml("table", { class: "formula", "aria-label": label || "size" }, ...caption,
      createHtml("tbody", {}, createLine(0), createLine(1), names)));
}

// Each column is [symbol, value, class, name]; signs have neither class nor name.
function listFormulaColumns(op, n, out) {
  const sign = (text) => [text, text, "", ""];
  const [output, input] = [["out", out, "out", "output"], ["in", n, "in", "input"]];
  const stride = ["s", op.stride, "s", "stride"];
  if (op.rule === "divide-ceil") return [output, sign("= ⌈"), input, sign("/"), stride, sign("⌉")];
  if (!op.rule.startsWith("window")) return null;
  const [open, close] = op.rule === "window-ceil" ? ["⌈", "⌉"] : ["⌊", "⌋"];
  return [output, sign(`= ${open}(`), input, sign("+ 2 ×"), ["p", op.padding, "p", "padding"], sign("−"),
    ["d", op.dilation, "d", "dilation"], sign("× ("), ["k", op.kernel, "k", "kernel"], sign("− 1) − 1) /"), stride,
    sign(`${close} + 1`)];
}

function describeSize(op, n, out) {
  if (op.text === "branch + shortcut") return `Two maps of ${n} are added element by element.`;
  if (!n) return "Input and output are vectors.";
  if (op.rule === "vector") return "The map becomes a vector, which has no side.";
  return `Each output pixel depends on one input pixel, so the size stays: ${n} → ${out}.`;
}

// ----------------------------------------------------------------------------------------------- the blocks of a stage

function groupEqualBlocks(stage) {
  const groups = [];
  for (const box of stage.parts) {
    const last = groups[groups.length - 1];
    if (last && last[0].treeIndex === box.treeIndex) last.push(box);
    else groups.push([box]);
  }
  return groups;
}

function createBlockTable(stage) {
  const maxMacs = getMaxMacs(stage.parts);
  const rows = groupEqualBlocks(stage).map((group) => {
    const [first, last] = [group[0], group[group.length - 1]];
    const row = createRow(["", first.tree.description, ...formatCells(first)]);
    row.firstChild.append(createPathButton(first.path));
    if (group.length > 1) row.firstChild.append(` to ${last.path.split(".").pop()}, each`);
    row.lastChild.prepend(createMacsBar(first, maxMacs));
    return row;
  });
  const heading = createHtml("h3", {}, `${stage.parts.length} part${stage.parts.length === 1 ? "" : "s"}`);
  return [heading, createTable(["path", "shortcut", "output", "params", "MACs", "share"], rows, "operations")];
}

// ------------------------------------------------------------------------------------------------- the receptive field

function createFieldFigure(part) {
  const [height, width] = state.sides;
  const scale = 240 / Math.max(height, width);
  const [w, h] = [width * scale, height * scale];
  const { field, stride } = part.output;
  const inside = clipSquare(w, h, field * scale);
  const outside = `M0 0H${w}V${h}H0Z M${inside.x} ${inside.y}v${inside.height}h${inside.width}v${-inside.height}Z`;
  const fieldClass = field >= Math.max(height, width) ? "field covers-image" : "field";
  const frame = { class: "field-image", viewBox: `-2 -2 ${w + 4} ${h + 4}`, width: w + 4, height: h + 4, role: "img" };
  const image = createSvg("svg", { ...frame, "aria-label": describeField(part) },
    createSvg("use", { href: "#scene", width: w, height: h }),
    createSvg("path", { class: "outside-field", d: outside, "fill-rule": "evenodd" }),
    createSvg("rect", { class: fieldClass, ...inside }),
    createSvg("rect", { class: "stride", ...clipSquare(w, h, stride * scale) }));
  return createHtml("figure", { class: "field-figure" }, image, createHtml("figcaption", {}, describeField(part)));
}

// A square in the middle of the image, cut off at its edges.
function clipSquare(w, h, side) {
  const [x, y] = [Math.max(0, (w - side) / 2), Math.max(0, (h - side) / 2)];
  return { x, y, width: w - 2 * x, height: h - 2 * y };
}

function describeField(part) {
  const { field, stride, shape } = part.output;
  if (shape.length === 1) return "A vector has no pixels: each of its numbers depends on the whole image.";
  const larger = field > Math.min(...state.sides) ? ", larger than the image" : "";
  const shift = `The field of the next pixel is shifted by ${stride}.`;
  return `One pixel of this map sees ${field} × ${field} pixels${larger}. ${shift}`;
}

// ----------------------------------------------------------------------------------------------------------- selection

function selectPart(path, scrolls) {
  state.selectedPath = path;
  for (const marks of [boxes, captions]) {
    const current = marks.find((mark) => mark.dataset.path === path);
    for (const mark of marks) {
      mark.toggleAttribute("aria-current", false);
      if (current) mark.setAttribute("tabindex", mark === current ? "0" : "-1");
    }
    if (current) current.setAttribute("aria-current", "true");
  }
  if (boxByPath.has(path)) scrollToBox(boxByPath.get(path));
  if (state.measured) updateDetails();
  if (scrolls) byId("details").scrollIntoView({ block: "nearest" });
}

function scrollToBox(box) {
  const frame = box.closest(".scroll");
  const [outer, inner] = [frame.getBoundingClientRect(), box.getBoundingClientRect()];
  if (inner.left >= outer.left && inner.right <= outer.right) return;
  frame.scrollLeft += inner.left - outer.left - (outer.width - inner.width) / 2;
}

function selectNeighbor(offset) {
  const current = boxes.findIndex((box) => box.dataset.path === state.selectedPath);
  const firstOfStage = boxes.findIndex((box) => box.dataset.path.startsWith(state.selectedPath + "."));
  const start = current < 0 ? firstOfStage - (offset > 0 ? 1 : 0) : current;
  selectPart(boxes[Math.min(boxes.length - 1, Math.max(0, start + offset))].dataset.path, false);
}

const KEY_TARGETS = {
  ArrowRight: (marks, i) => marks[Math.min(marks.length - 1, i + 1)],
  ArrowLeft: (marks, i) => marks[Math.max(0, i - 1)],
  Home: (marks) => marks[0],
  End: (marks) => marks[marks.length - 1],
  Enter: (marks, i) => marks[i],
  " ": (marks, i) => marks[i],
  ArrowDown: (marks, i) => captions.find((caption) => captionHasBox(caption, marks[i])) || marks[i],
  ArrowUp: (marks, i) => boxes.find((box) => captionHasBox(marks[i], box)) || marks[i],
};

function captionHasBox(caption, box) {
  return box.dataset.path === caption.dataset.path || box.dataset.path.startsWith(caption.dataset.path + ".");
}

function handleKey(event) {
  const mark = event.target.closest("[data-path]");
  if (!mark || !(event.key in KEY_TARGETS) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const marks = boxes.includes(mark) ? boxes : captions;
  const target = KEY_TARGETS[event.key](marks, marks.indexOf(mark));
  selectPart(target.dataset.path, false);
  target.focus();
  target.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function makeSelectable(marks) {
  marks.forEach((mark, i) => {
    mark.setAttribute("role", "button");
    mark.setAttribute("tabindex", i ? "-1" : "0");
    mark.addEventListener("click", () => selectPart(mark.dataset.path, false));
  });
}

// ----------------------------------------------------------------------------------------------------------- questions

const questions = [...byId("questions").children];

function filterQuestions() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = questions.filter((question) => {
    const text = `${question.dataset.words} ${question.textContent}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  for (const question of questions) question.hidden = !matches.includes(question);
  if (words.length) questions.forEach((question) => { question.open = matches.length <= 2 && !question.hidden; });
  byId("search-count").textContent = words.length ? `${matches.length} of ${questions.length}` : "";
}

// ------------------------------------------------------------------------------------------------------------ controls

function updateAll() {
  try {
    state.measured = measureNetwork(state.variant, state.sides);
  } catch (error) {
    if (!(error instanceof EmptyMapError)) throw error;
    showEmptyMap(error);
    return;
  }
  setSizeValid(true);
  [updateTotals, updateDrawing, updateParts, updateReasons, updateDetails].forEach((update) => update());
}

function setSizeValid(isValid) {
  document.body.classList.toggle("size-invalid", !isValid);
  byId("size-error").hidden = isValid;
  byId("details").hidden = !isValid;
}

function showEmptyMap(error) {
  setSizeValid(false);
  byId("size-error").textContent = `Images of ${formatShape(state.sides)} are too small: the input of ${error.path} ` +
    `is ${formatShape(error.sides)}, so its output would be empty. Choose a larger image.`;
  for (const key of ["macs", "receptive-field", "activations"]) byId(`total-${key}`).textContent = "—";
  byId("note-activations").textContent = "";
  for (const cell of byId("parts").querySelectorAll("tbody td:nth-child(n + 3)")) cell.textContent = "—";
}

function setSize(text, source) {
  const side = Math.round(Number(text));
  const maxSide = Number(byId("size").max);
  if (!text || Number(text) !== side || side < 1 || side > maxSide) {
    byId("size-error").textContent = `The image size must be a whole number from 1 to ${maxSide}. ` +
      `The page still shows ${formatShape(state.sides)}.`;
    byId("size-error").hidden = false;
    return;
  }
  state.sides = [side, side];
  for (const control of [byId("slider"), byId("size")]) if (control !== source) control.value = side;
  updateAll();
}

function resetSize() {
  state.sides = network.input.slice(1);
  byId("slider").value = byId("size").value = Math.max(...state.sides);
  updateAll();
}

function setUpPage() {
  makeSelectable(boxes);
  makeSelectable(captions);
  drawing.parentNode.setAttribute("role", "group");
  drawing.addEventListener("keydown", handleKey);
  linkParts();
  for (const control of [byId("slider"), byId("size")]) {
    control.addEventListener("input", () => setSize(control.value, control));
  }
  byId("reset-size").addEventListener("click", resetSize);
  for (const choice of document.getElementsByName("stride")) {
    choice.addEventListener("change", () => { state.variant = Number(choice.value); updateAll(); });
  }
  byId("previous").addEventListener("click", () => selectNeighbor(-1));
  byId("next").addEventListener("click", () => selectNeighbor(1));
  byId("search").addEventListener("input", filterQuestions);
  for (const id of ["controls", "hint", "search-box"]) byId(id).hidden = false;
  const arc = drawing.querySelector(".arc:not(.identity)") || drawing.querySelector(".arc");
  selectPart((arc ? arc.closest(".box") : boxes[Math.min(1, boxes.length - 1)]).dataset.path, false);
  updateAll();
}

setUpPage();
