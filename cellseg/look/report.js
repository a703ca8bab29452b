// The page around the viewer: the list of images, tables, controls and keys.

function open(at, selected = null) {
  Object.assign(state, { image: at, selected: null, region: null });
  tip.hidden = true;
  for (const button of byId("list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  const button = images[at].button;
  button.setAttribute("aria-current", "true");
  // Not scrollIntoView, which would also scroll the page.
  const list = byId("list"), item = button.parentElement;
  if (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop - list.clientHeight / 3;
  list.scrollLeft = item.offsetLeft - list.clientWidth / 3;
  fit();
  showStatus();
  fillWorst();
  if (selected) select(selected.side, selected.cell);
}

/** Return the cells that , and . step through: errors, unusual cells, or detections by rising score. */
function cellsToCheck() {
  const image = current();
  const listed = (side, cells) => cells.map((cell) => ({ side, cell }));
  if (!page.results.length) return listed("gt", [...image.unusualCells.keys()].filter((cell) => state.classes.has(image.gt.classes[cell])));
  const { n, by } = matchAt(image);
  const detections = image.results[state.result];
  const kept = [...Array(n).keys()].filter((cell) => state.classes.has(detections.classes[cell]));
  if (!isScored) return listed("detection", kept.reverse());
  const undetected = image.gt.classes.map((_, cell) => cell)
    .filter((cell) => state.classes.has(image.gt.classes[cell]) && gtOutcome(image, by, cell) === UNMATCHED)
    .sort((a, b) => image.gt.area[b] - image.gt.area[a]);
  const wrong = kept.filter((cell) => [MISCLASSIFIED, UNMATCHED].includes(detectionOutcome(image, cell)));
  return [...listed("detection", wrong), ...listed("gt", undetected)];
}

function stepCell(by) {
  const cells = cellsToCheck();
  if (!cells.length) return;
  const at = cells.findIndex(({ side, cell }) => side === state.selected?.side && cell === state.selected?.cell);
  const next = at < 0 ? (by > 0 ? 0 : cells.length - 1) : (at + by + cells.length) % cells.length;
  select(cells[next].side, cells[next].cell);
}

// ---- The tables of the image ------------------------------------------------------

const MOST_ROWS = 100;

/** List the cells to check; a click on a row shows its cell. */
function fillWorst() {
  const image = current();
  if (!image || !byId("worst").closest("details").open) return;
  const cells = cellsToCheck();
  const hasReasons = isScored || !page.results.length;
  byId("worst").classList.toggle("reasons", hasReasons);
  const rows = cells.slice(0, MOST_ROWS).map(({ side, cell }) => {
    const { classes: of, scores, iou, area: px, x, y } = sideOf(image, side).cells;
    const [, reason] = (side === "gt" ? describeGt(cell) : describeDetection(cell)).split("\n");
    return [`${x[cell]}, ${y[cell]}`, classes[of[cell]], ...(page.results.length ? [scores ? number(scores[cell]) : "–"] : []), px[cell], ...(hasReasons ? [reason || ""] : [])];
  });
  const more = !rows.length ? ": none" : cells.length > rows.length ? `, the first ${rows.length} of ${cells.length}` : "";
  const head = ["x, y (px)", "class", ...(page.results.length ? ["score"] : []), "area (px)", ...(hasReasons ? ["reason"] : [])];
  fillTable(byId("worst"), `Cells to check in ${image.name}${more}`, rows.length ? head : [], rows);
  [...byId("worst").tBodies[0].rows].forEach((row, at) => {
    const cell = row.cells[0];
    cell.replaceChildren(make("button", { textContent: cell.textContent, onclick: () => { select(cells[at].side, cells[at].cell); toViewer(); } }));
  });
}

/** Count the cells in view by class; `n` is their number, that decides what is drawn. */
function countView(image, box) {
  const gt = page.has_ground_truth ? countIn(image, "gt", box) : zeros();
  const detections = page.results.length ? countIn(image, "detection", box) : zeros();
  return { gt, detections, n: sum(gt) + sum(detections) };
}

/** Show the cells in view, and in the rectangle if there is one: counts, densities and shares. */
function showRegions(image, box, found) {
  const um = (px) => (image.mpp ? `${Number((px * image.mpp).toPrecision(3))} µm` : `${Math.round(px)} px`);
  const regions = [["in-view", "In view", box, found]];
  if (state.region) regions.push(["in-region", "In the rectangle", state.region, countView(image, state.region)]);
  byId("in-region").hidden = !state.region;
  byId("measure-hint").hidden = Boolean(state.region);
  for (const [id, title, [x0, y0, x1, y1], counts] of regions) {
    const size = areaOf(image, [x0, y0, x1, y1]), unit = areaUnit(image);
    const sides = [
      ...(page.results.length ? [["detections", counts.detections]] : []),
      ...(page.has_ground_truth ? [["ground truth", counts.gt]] : []),
    ];
    const about = `${title}: ${um(x1 - x0)} × ${um(y1 - y0)}${id === "in-view" ? "" : `, x ${x0} to ${x1}, y ${y0} to ${y1} px`}`;
    const cells = (value, total) => [value, density(value / size), total ? `${number((100 * value) / total, 1)} %` : "–"];
    const rows = shownClasses().map((k) => [classes[k], ...sides.flatMap(([, values]) => cells(values[k], ofShown(values)))]);
    rows.push(["shown classes", ...sides.flatMap(([, values]) => cells(ofShown(values), ofShown(values)))]);
    fillTable(byId(id), about, ["class", ...sides.flatMap(([name]) => [name, `per ${unit} ${title.toLowerCase()}`, "share"])], rows);
  }
}

// ---- The list, and the tables of all images ---------------------------------------

function listText(image) {
  const { gt, detections, fn, fp, misclassified, score } = summarize(image);
  if (!page.results.length) return `${plural(gt, "cell")}${image.unusual.length ? `, ${image.unusual.length} unusual` : ""}`;
  if (!isScored) return `${plural(detections, "detection")}${detections ? `\nmean score ${number(score)}` : ""}`;
  const f1 = (result) => { // above 1 there is nothing to detect, and nothing detected
    const value = summarize(image, result).f1;
    return value > 1 ? "–" : number(value);
  };
  const quality = page.results.length > 1 ? `F1 A ${f1(0)}, B ${f1(1)}` : `F1 ${f1(0)}`;
  return `${quality}\n${fn}\u00a0FN, ${fp}\u00a0FP, ${misclassified}\u00a0misclassified`;
}

function showStatus() {
  if (!current()) return;
  const image = current();
  const { gt, detections, tp, fn, fp, misclassified } = summarize(image);
  const text = isScored
    ? `${plural(gt, "ground-truth cell")}, ${plural(detections, "detection")}: ${plural(tp, "true positive")}, ` +
      `${plural(fn, "false negative")}, ${plural(fp, "false positive")}, ${misclassified} misclassified · ${listText(image).split("\n")[0]}`
    : listText(image).replace("\n", ", ");
  byId("name").textContent = image.name;
  byId("status").textContent = `${text} · ${image.size[1]} × ${image.size[0]} px${image.reduced > 1 ? `, shown ${image.reduced} times smaller` : ""}`;
  canvas.setAttribute("aria-label", `Image ${image.name}`);
}

// [key, what the user reads, what images are sorted by, rising]
const SORTS = [
  ...(isScored && page.results.length > 1 ? [["change", "largest F1 drop first", (i) => summarize(i, 1).f1 - summarize(i, 0).f1]] : []),
  ...(isScored ? [
    ["f1", "lowest F1 first", (i) => summarize(i).f1],
    ["pq", "lowest PQ first", (i) => summarize(i).pq],
    ["fn", "most false negatives first", (i) => -summarize(i).fn],
    ["fp", "most false positives first", (i) => -summarize(i).fp],
    ["misclassified", "most misclassified first", (i) => -summarize(i).misclassified],
  ] : []),
  ...(page.results.length ? [] : [["unusual", "most unusual cells first", (i) => -i.unusual.length]]),
  ...(page.results.length && !isScored ? [["score", "lowest mean score first", (i) => summarize(i).score]] : []),
  ["cells", "most cells first", (i) => -(summarize(i).gt || summarize(i).detections)],
  ["name", "by name", (i) => i.name],
];

const ordered = () => [...byId("list").querySelectorAll("li:not([hidden]) > button")].map((button) => Number(button.value));

/** Sort the list, and hide images without cells of the shown classes. */
function sort() {
  const [, , keyOf] = SORTS.find(([key]) => key === state.sort);
  const keys = images.map(keyOf);
  const compare = (a, b) => (keys[a.at] < keys[b.at] ? -1 : keys[a.at] > keys[b.at] ? 1 : a.at - b.at);
  const focused = document.activeElement;
  byId("list").append(...[...images].sort(compare).map((image) => image.button.parentElement));
  for (const image of images) {
    const { gt, detections, misclassified } = summarize(image);
    image.button.parentElement.hidden = state.classes.size < classes.length && !(gt + detections + misclassified);
  }
  if (byId("list").contains(focused)) focused.focus();
}

function relabel() {
  for (const image of images) image.button.querySelector("span").textContent = listText(image);
  showStatus();
  fillWorst();
  if (page.results.length) fillTables();
  redraw();
}

function fillTable(table, caption, head, rows, shade) {
  table.replaceChildren(
    make("caption", { textContent: caption }),
    make("thead", {}, make("tr", {}, ...head.map((textContent) => make("th", { scope: "col", textContent })))),
    make("tbody", {}, ...rows.map(([name, ...values], r) => make("tr", {},
      make("th", { scope: "row", textContent: name }),
      ...values.map((value, c) => {
        const cell = make("td", { textContent: value });
        if (shade) cell.style.background = `rgb(0 120 220 / ${shade(r, c)})`;
        return cell;
      })))),
  );
}

function fillTables() {
  const sums = images.reduce((all, image) => addTo(all, image, state.result), emptySums());
  const of = page.results.length > 1 ? ` of ${"AB"[state.result]}` : "";
  const caption = `Detections${of} with a score of ${scoreText(state.threshold)} or more, all images.`;
  if (!isScored) {
    const rows = classes.map((name, k) => [name, sums.detections[k]]);
    fillTable(byId("table"), caption, ["class", "detections"], [...rows, ["any class", sum(sums.detections)]]);
    return;
  }
  const row = (name, gt, detections, tp, fp, iou) => [
    name, gt, detections, tp, gt - tp, fp,
    number(gt ? tp / Math.max(1, tp + fp) : NaN, 3), number(tp / gt, 3),
    number(gt ? (2 * tp) / (tp + gt + fp) : NaN, 3), number(gt ? iou / (tp + (gt - tp + fp) / 2) : NaN, 3),
  ];
  const rows = classes.map((name, k) => row(name, sums.gt[k], sums.detections[k], sums.tp[k], sums.fp[k], sums.iou[k]));
  rows.push(row("any class", sum(sums.gt), sum(sums.detections), sums.anyTp, sums.anyFp, sums.anyIou));
  fillTable(byId("table"), `${caption} A misclassified cell counts as a false negative of its class and as a false positive of the predicted class.`,
    ["class", "ground truth", "detections", "true positives", "false negatives", "false positives", "precision", "recall", "F1", "pooled PQ"], rows);
  const totals = sums.matrix.map((line) => sum(line) || 1);
  fillTable(byId("confusion"), `Confusion matrix${of}: ground truth (rows) by predicted class (columns); the colour of a number is its share of the row`, ["", ...classes, "not detected"],
    sums.matrix.map((line, a) => [classes[a] ?? "background", ...[...line].map((value, b) => (a + b === 2 * classes.length ? "" : value))]),
    (a, b) => 0.6 * sums.matrix[a][b] / totals[a]);
}

// ---- Controls ---------------------------------------------------------------------

const swatch = (colour) => {
  const patch = make("span", { className: "swatch" });
  patch.style.background = colour;
  return patch;
};

/** Draw a small picture of a layer's line or pattern. */
function sample({ key, line, colour }) {
  const small = make("canvas", { className: "swatch wide", width: 44, height: 28 });
  small.setAttribute("aria-hidden", "true");
  const pen = small.getContext("2d");
  pen.fillStyle = "#8c6f95"; // about the colour of tissue
  pen.fillRect(0, 0, 44, 28);
  if (colour) {
    pen.fillStyle = pen.createPattern(patternTile(key, colour, 2), "repeat");
    pen.fillRect(0, 0, 44, 28);
    return small;
  }
  const draws = [[line.length ? "#fff" : "#000", 10, []], [colours[0], 6, line.map((length) => 2 * length)]];
  for (const [style, width, dashes] of draws) {
    Object.assign(pen, { strokeStyle: style, lineWidth: width });
    pen.setLineDash(dashes);
    pen.beginPath();
    pen.moveTo(0, 14);
    pen.lineTo(44, 14);
    pen.stroke();
  }
  return small;
}

const press = (button, isOn) => button.setAttribute("aria-pressed", String(isOn));

function toggleLayer(key) {
  state.layers[key] = !state.layers[key];
  press(byId(`layer-${key}`), state.layers[key]);
  tip.hidden = true;
  redraw();
}

/** Show or hide a class, or show it alone. */
function toggleClass(k, isAlone = false) {
  if (isAlone) state.classes = new Set([k]);
  else if (!state.classes.delete(k)) state.classes.add(k);
  classes.forEach((_, each) => press(byId(`class-${each}`), state.classes.has(each)));
  tip.hidden = true;
  sort();
  relabel();
}

function showResult(result) {
  state.result = result;
  state.selected = null;
  tip.hidden = true;
  page.results.forEach((_, r) => press(byId(`result-${r}`), r === result));
  sort();
  relabel();
}

function readSlider() {
  state.threshold = slider.valueAsNumber;
  byId("score-shown").textContent = scoreText(state.threshold);
  tip.hidden = true;
}

/** Lower the minimum score, if necessary, so that a detection is shown. */
function reveal(score) {
  if (score >= state.threshold) return;
  slider.value = Math.floor(100 * score) / 100;
  readSlider();
  sort();
  relabel();
}

function measure(isOn) {
  state.isMeasuring = isOn;
  press(byId("measure"), isOn);
  canvas.classList.toggle("measuring", isOn);
  touchAction();
}

function clearRegion() {
  state.region = null;
  measure(false);
  redraw();
}

const toViewer = () => {
  byId("viewer").scrollIntoView({ block: "nearest" });
  canvas.focus({ preventScroll: true });
};

function help() {
  byId("help").showModal();
  byId("help").scrollTop = 0; // it is at the button that has the focus
}

function step(by) {
  const order = ordered();
  if (!order.length) return;
  const at = order.indexOf(state.image);
  open(order[Math.min(order.length - 1, Math.max(0, at < 0 ? 0 : at + by))]);
}

for (const layer of LAYERS) {
  const button = make("button", { id: `layer-${layer.key}`, title: `${layer.about} (${layer.key})`, onclick: () => toggleLayer(layer.key) },
    sample(layer), layer.name, make("kbd", { textContent: layer.key, ariaHidden: "true" }));
  press(button, layer.on);
  byId("layers").append(button);
}
classes.forEach((name, k) => {
  const button = make("button", { id: `class-${k}`, title: "show or hide; with Shift, show alone", onclick: (event) => toggleClass(k, event.shiftKey) }, swatch(colours[k]), name);
  if (k < 9) button.append(make("kbd", { textContent: k + 1, ariaHidden: "true" }));
  press(button, true);
  byId("classes").append(button);
});
if (page.results.length > 1) {
  page.results.forEach((name, r) => {
    const button = make("button", { id: `result-${r}`, title: name, onclick: () => showResult(r) }, `${"AB"[r]} ${name.split(/[/\\]/).slice(-2).join("/")}`);
    press(button, r === state.result);
    byId("results").append(button);
  });
}
byId("sort").append(...SORTS.map(([value, textContent]) => make("option", { value, textContent })));
state.sort = SORTS[0][0];
byId("sort").onchange = () => {
  state.sort = byId("sort").value;
  sort();
  step(-Infinity);
};
const slider = byId("score");
if (slider) {
  slider.value = state.threshold;
  byId("score-shown").textContent = scoreText(state.threshold);
  let isWaiting = false;
  slider.oninput = () => {
    readSlider();
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      relabel();
    });
  };
  slider.onchange = sort; // not while it moves, or the list would jump
}
images.forEach((image) => {
  const thumb = make("img", { src: image.thumb, alt: "", loading: "lazy", decoding: "async" });
  image.button = make("button", { value: image.at, title: image.name, onclick: () => open(image.at) },
    thumb, make("b", { textContent: image.name }), make("span"));
  byId("list").append(make("li", {}, image.button));
});
const buttons = { previous: () => step(-1), next: () => step(1), in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit, measure: () => measure(!state.isMeasuring) };
for (const [id, act] of Object.entries(buttons)) byId(id).onclick = () => current() && act();
byId("worst").closest("details").ontoggle = fillWorst;
byId("help-open").onclick = help;
for (const button of document.querySelectorAll(".examples button")) {
  button.onclick = () => {
    const { image, result, cell } = button.dataset;
    if (result >= 0 && page.results.length > 1) showResult(Number(result));
    if (result >= 0) reveal(images[image].results[result].scores[cell]);
    open(Number(image), { side: result < 0 ? "gt" : "detection", cell: Number(cell) });
    toViewer();
  };
}

const KEYS = [
  ["← →", "previous, next image"],
  [", .", `previous, next ${page.results.length ? (isScored ? "error" : "detection, by rising score,") : "unusual cell"} in the image`],
  ["1 – 9", "show or hide a class (a click with Shift shows it alone)"],
  ...LAYERS.map(({ key, name, about }) => [key, `show or hide ${name} (${about})`]),
  ...(page.results.length > 1 ? [["R", "switch between A and B"]] : []),
  ["+ − 0", "zoom in, zoom out, fit"],
  ["Shift + arrows", "move the image"],
  ["A", "draw a rectangle to count its cells, as dragging with Shift does"],
  ["Esc", "remove the rectangle"],
  ["?", "this help"],
];
byId("keys").append(make("tbody", {}, ...KEYS.map(([key, what]) => make("tr", {}, make("th", { scope: "row" }, make("kbd", { textContent: key })), make("td", { textContent: what })))));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const { target, key } = event;
  if (target.tagName === "SELECT") return;
  if (target === slider && /^(Arrow|Page|Home|End)/.test(key)) return;
  const far = 60;
  const moves = { ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] };
  let act = null;
  if (event.shiftKey && moves[key]) act = () => current() && move(...moves[key]);
  else if (key === "ArrowLeft" || key === "ArrowRight") act = () => step(key === "ArrowLeft" ? -1 : 1);
  else if (key === "+" || key === "=") act = () => current() && zoom(1.5);
  else if (key === "-" || key === "_") act = () => current() && zoom(1 / 1.5);
  else if (key === "0") act = () => current() && fit();
  else if (key === "." || key === ",") act = () => current() && stepCell(key === "." ? 1 : -1);
  else if (key === "Escape") act = clearRegion;
  else if (key.toUpperCase() === "A") act = () => measure(!state.isMeasuring);
  else if (key === "?") act = help;
  else if (/^[1-9]$/.test(key) && Number(key) <= classes.length) act = () => toggleClass(Number(key) - 1);
  else if (key.toUpperCase() in state.layers) act = () => toggleLayer(key.toUpperCase());
  else if (key.toUpperCase() === "R" && page.results.length > 1) act = () => showResult(1 - state.result);
  if (!act) return;
  event.preventDefault();
  act();
});

document.querySelector(".gallery").classList.toggle("single", images.length === 1);
byId("sort").parentElement.hidden = images.length === 1;
const controls = document.querySelector(".controls");
new ResizeObserver(() => {
  const isSticky = getComputedStyle(controls).position === "sticky";
  document.documentElement.style.setProperty("--controls", `${isSticky ? controls.offsetHeight : 0}px`);
}).observe(controls);

sort();
relabel();
step(-Infinity);
