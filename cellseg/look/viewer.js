// The viewer: one image of any size, its cells or their density, and what the pointer does to them.

const canvas = byId("canvas"), stage = byId("stage"), tip = byId("tip"), overview = byId("overview");
const context = canvas.getContext("2d");
const probe = document.createElement("canvas").getContext("2d");
const view = { scale: 1, x: 0, y: 0, fitted: true }; // canvas px = image px * scale + x, y
let frame = 0;
let drawn = { gt: [], detection: [] }; // the cells with outlines in view
let timer = 0, resting = null; // what the view shows, if nothing has changed for a moment
let layer = null; // many outlines, drawn when the view rested last
const MAX_OUTLINES = 5000, MAX_TILES = 64; // in view; beyond, the density is drawn
const MAX_DIRECT = 400; // more outlines are drawn in parts, once the view rests
const SQUARE = 10; // screen px, smallest sides of the squares of the density map

// A layer is recognized without its colour, by its line or pattern.
const LAYERS = [
  ...(page.has_ground_truth ? [{ key: "T", name: "ground truth", on: true, line: [], about: "solid line, dark edge" }] : []),
  ...(page.results.length ? [{ key: "P", name: "detections", on: true, line: [6, 4], about: "dashed line, white edge" }] : []),
  ...(isScored ? [
    { key: "H", name: "true positives", on: false, colour: "#00e676", about: "detections that match a ground-truth cell of their class: plain tint" },
    { key: "M", name: "false negatives", on: true, colour: "#ff1744", about: "ground-truth cells without a matching detection: slanted hatching" },
    { key: "F", name: "false positives", on: true, colour: "#00e5ff", about: "detections without a matching ground-truth cell: dots" },
    { key: "N", name: "misclassified", on: true, colour: "#ffea00", about: "detections that match a ground-truth cell of another class: horizontal bars" },
  ] : []),
  ...(page.results.length ? [] : [{ key: "X", name: "unusual", on: true, colour: "#ff1744", about: "cells to check: slanted hatching" }]),
];
LAYERS.forEach((layer) => { state.layers[layer.key] = layer.on; });

const current = () => images[state.image];

/** Return whether a detection has a shown class, or is mistaken for one. */
const isOfShownClass = (image, cell) => {
  const { classes: predicted, match } = image.results[state.result];
  return state.classes.has(predicted[cell]) ||
    (detectionOutcome(image, cell) === MISCLASSIFIED && state.classes.has(image.gt.classes[match[cell]]));
};

// ---- Drawing ----------------------------------------------------------------------

function patternTile(key, colour, ratio) {
  const side = Math.round(8 * ratio);
  const small = make("canvas", { width: side, height: side });
  const pen = small.getContext("2d");
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 1.6 * ratio;
  pen.beginPath();
  if (key === "H") {
    pen.globalAlpha = 0.4;
    pen.fillRect(0, 0, side, side);
  } else if (key === "F") {
    pen.arc(side / 4, side / 4, 1.5 * ratio, 0, 7);
    pen.arc((3 * side) / 4, (3 * side) / 4, 1.5 * ratio, 0, 7);
    pen.fill();
  } else if (key === "N") {
    pen.moveTo(0, side / 2);
    pen.lineTo(side, side / 2);
    pen.stroke();
  } else {
    for (const shift of [-side, 0, side]) {
      pen.moveTo(shift - 2, side + 2);
      pen.lineTo(shift + side + 2, -2);
    }
    pen.stroke();
  }
  return small;
}

const pixelRatio = () => Math.min(window.devicePixelRatio || 1, 3);
const redraw = () => { frame ||= requestAnimationFrame(draw); };

/** Return the part of the image in view, [x0, y0, x1, y1] in its pixels. */
function boxInView(image) {
  const x = (at) => Math.min(image.size[1], Math.max(0, (at - view.x) / view.scale));
  const y = (at) => Math.min(image.size[0], Math.max(0, (at - view.y) / view.scale));
  return [x(0), y(0), x(stage.clientWidth), y(stage.clientHeight)];
}

function draw() {
  frame = 0;
  clock++;
  const ratio = pixelRatio();
  const width = Math.round(stage.clientWidth * ratio), height = Math.round(stage.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  const image = current();
  if (!image) return;
  const block = tile(image.at);
  if (!block) return;
  const box = boxInView(image);
  const scale = view.scale * ratio;
  context.setTransform(scale, 0, 0, scale, view.x * ratio, view.y * ratio);
  context.imageSmoothingEnabled = view.scale < 4; // show single pixels when enlarged
  let missing = drawPicture(image, block, box, scale);
  const found = countView(image, box);
  const tiles = image.slide ? [...tilesIn(box, page.tile_sizes.cells)] : [];
  const isFar = found.n > MAX_OUTLINES || tiles.length > MAX_TILES;
  drawn = { gt: [], detection: [] };
  byId("density").hidden = !isFar;
  if (isFar) drawDensity(image, box, found.n);
  else missing += collectCells(image, block, box, tiles);
  const isLayered = drawn.gt.length + drawn.detection.length > MAX_DIRECT;
  const content = [image.at, state.result, state.threshold, shownClasses(), Object.values(state.layers)].join();
  if (!isLayered) drawCells(context, image, drawn.gt, drawn.detection);
  else if (layer?.image === image) {
    const [x0, y0, x1, y1] = layer.box; // where it was drawn, in pixels of the image
    context.drawImage(layer.canvas, x0, y0, x1 - x0, y1 - y0);
  }
  const selected = state.selected && drawn[state.selected.side].find(({ id }) => id === state.selected.cell);
  if (selected) strokeTwice(selected.path, 3);
  if (state.region) {
    const [x0, y0, x1, y1] = state.region;
    const region = new Path2D();
    region.rect(x0, y0, x1 - x0, y1 - y0);
    strokeTwice(region, 2);
  }
  drawOverview(image, block, box);
  showScale(image);
  const key = [content, view.scale, view.x, view.y, width, height, drawn.gt.length, drawn.detection.length, state.region, missing].join();
  if (resting !== key) {
    resting = null;
    clearTimeout(timer);
    timer = setTimeout(() => rest(key, image, box, found, isLayered), 50);
  }
  missing += resting !== key || (isLayered && layer?.key !== key) ? 1 : 0;
  // Tests wait for these, the benchmark measures the time.
  Object.assign(canvas.dataset, { image: image.at, missing, mode: isFar ? "density" : "outlines" });
  document.documentElement.dataset.ready ||= String(Math.round(performance.now()));
}

/** Draw the pixels; return how many tiles are still to be loaded. */
function drawPicture(image, block, box, scale) {
  const [height, width] = image.size;
  if (!image.slide) {
    context.drawImage(block.picture, 0, 0, width, height);
    return 0;
  }
  const put = ({ picture }, x, y, level) => context.drawImage(picture, x, y, picture.width * 2 ** level, picture.height * 2 ** level);
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height); // the last pixels of a level may reach over the edge
  context.clip();
  const last = image.slide.levels - 1;
  const wanted = Math.min(last, Math.max(0, Math.floor(-Math.log2(scale))));
  put(block, 0, 0, last);
  let missing = 0;
  for (let level = last - 1; level >= wanted; level--) {
    const side = page.tile_sizes.picture * 2 ** level;
    for (const [column, row] of tilesIn(box, side)) {
      const name = `${image.at}/${level}/${column}_${row}`;
      const loaded = level === wanted ? tile(name) : cache.get(name)?.value; // coarser ones fill gaps
      if (loaded?.picture) put(loaded, column * side, row * side, level);
      else if (!loaded && level === wanted) missing++;
    }
  }
  context.restore();
  return missing;
}

/** Find the cells in view, each once; return how many tiles are still to be loaded. */
function collectCells(image, block, box, tiles) {
  let missing = 0;
  const parts = image.slide ? [] : [block];
  const columns = Math.ceil(image.size[1] / page.tile_sizes.cells);
  image.tilesWithCells ||= new Set(image.slide?.cells);
  for (const [column, row] of tiles) {
    if (!image.tilesWithCells.has(row * columns + column)) continue;
    const loaded = tile(`${image.at}/cells/${row * columns + column}`);
    if (loaded) parts.push(loaded);
    else missing++;
  }
  const seen = { gt: new Set(), detection: new Set() }; // a cell may reach into several tiles
  const { n } = matchAt(image);
  for (const part of parts) {
    for (const [side, cells, most] of [["gt", part.gt, Infinity], ["detection", part.results[state.result] || [], n]]) {
      for (const cell of cells) {
        const { box: [x0, y0, x1, y1], id } = cell;
        if (id >= most || x1 <= box[0] || x0 >= box[2] || y1 <= box[1] || y0 >= box[3] || seen[side].has(id)) continue;
        seen[side].add(id);
        drawn[side].push(cell);
      }
    }
  }
  return missing;
}

/** Update the numbers and the layer of outlines, which take too long for every frame of a movement. */
function rest(key, image, box, found, isLayered) {
  resting = key;
  showRegions(image, box, found);
  if (!isLayered || layer?.key === key) {
    redraw();
    return;
  }
  const next = { key, image, canvas: make("canvas", { width: canvas.width, height: canvas.height }) };
  const pen = next.canvas.getContext("2d");
  pen.setTransform(context.getTransform());
  next.box = [-view.x / view.scale, -view.y / view.scale, (stage.clientWidth - view.x) / view.scale, (stage.clientHeight - view.y) / view.scale];
  // From left to right, so that all outlines of a cell are in one part.
  const cells = ["gt", "detection"].flatMap((side) => drawn[side].map((cell) => ({ side, cell }))).sort((a, b) => a.cell.box[0] - b.cell.box[0]);
  let at = 0;
  (function drawPart() {
    if (resting !== key) return; // the view has moved on
    const part = cells.slice(at, (at += MAX_DIRECT));
    const of = (wanted) => part.filter(({ side }) => side === wanted).map(({ cell }) => cell);
    drawCells(pen, image, of("gt"), of("detection"));
    if (at < cells.length) requestAnimationFrame(drawPart);
    else {
      layer = next;
      redraw();
    }
  })();
}

/** Draw cells with a pen that has the transform of the view. */
function drawCells(pen, image, gtCells, detectionCells) {
  const { by } = matchAt(image);
  const fills = {}, lines = { T: [], P: [] };
  LAYERS.forEach(({ key }) => { fills[key] = new Path2D(); });
  for (const { id, path } of gtCells) {
    const k = image.gt.classes[id];
    if (!state.classes.has(k)) continue;
    if (state.layers.T) (lines.T[k] ||= new Path2D()).addPath(path);
    if (gtOutcome(image, by, id) === UNMATCHED) fills.M.addPath(path);
    if (image.unusualCells?.has(id)) fills.X.addPath(path);
  }
  for (const { id, path } of detectionCells.sort((a, b) => b.id - a.id)) { // the best on top
    if (!isOfShownClass(image, id)) continue;
    const k = image.results[state.result].classes[id];
    if (state.classes.has(k) && state.layers.P) (lines.P[k] ||= new Path2D()).addPath(path);
    const key = { [TRUE_POSITIVE]: "H", [UNMATCHED]: "F", [MISCLASSIFIED]: "N" }[detectionOutcome(image, id)];
    if (key) fills[key].addPath(path);
  }
  for (const { key, colour } of LAYERS) {
    if (!colour || !state.layers[key]) continue;
    const pattern = pen.createPattern(patternTile(key, colour, pixelRatio()), "repeat");
    pattern.setTransform(new DOMMatrix().scale(1 / (view.scale * pixelRatio())));
    pen.fillStyle = pattern;
    pen.fill(fills[key]); // holes run the other way, so that none is filled
    stroke(pen, fills[key], colour, 1, []);
  }
  // The white edge of detections shows between their dashes, also on the ground truth.
  const fine = view.scale < 1 ? 0.7 : 1;
  for (const path of Object.values(lines.T)) stroke(pen, path, "rgba(0,0,0,.65)", 3.2 * fine, []);
  lines.T.forEach((path, k) => stroke(pen, path, colours[k], 1.7 * fine, []));
  for (const path of Object.values(lines.P)) stroke(pen, path, "rgba(255,255,255,.85)", 2.4 * fine, []);
  lines.P.forEach((path, k) => stroke(pen, path, colours[k], 2 * fine, [6, 4]));
}

function stroke(pen, path, colour, width, dashes) {
  pen.strokeStyle = colour;
  pen.lineWidth = width / view.scale;
  pen.setLineDash(dashes.map((length) => length / view.scale));
  pen.stroke(path);
}

function strokeTwice(path, width) {
  stroke(context, path, "#000", 2 * width, []);
  stroke(context, path, "#fff", width, []);
}

/** Return the side whose density is shown: the detections, unless their layer is off; or null. */
const densitySide = () => (state.layers.P ? "detection" : state.layers.T ? "gt" : null);

/** Return the sides of the squares in pixels of the image: with two cells or more in the mean square. */
function densityStep(box, n) {
  let step = 2 ** Math.max(4, Math.ceil(Math.log2(SQUARE / view.scale)));
  while (step * view.scale < 60 && n < (2 * (box[2] - box[0]) * (box[3] - box[1])) / step ** 2) step *= 2;
  return step;
}

/** Draw the cells of the shown classes per square: the more, the stronger their mixed colour. */
function drawDensity(image, box, n) {
  const side = densitySide();
  byId("density").textContent = "";
  if (!side) return;
  const grid = densityGrid(image, side, densityStep(box, n));
  const key = grid.key + shownClasses();
  if (grid.drawn !== key) {
    const { columns, rows, counts, step } = grid;
    grid.map = make("canvas", { width: columns, height: rows });
    const pen = grid.map.getContext("2d");
    const pixels = pen.createImageData(columns, rows);
    const rgb = colours.map((colour) => colour.match(/\d+/g).map(Number));
    const all = new Float64Array(columns * rows);
    state.classes.forEach((k) => counts[k].forEach((count, at) => { all[at] += count; }));
    grid.most = all.reduce((a, b) => Math.max(a, b), 1);
    all.forEach((count, at) => {
      if (!count) return;
      for (let c = 0; c < 3; c++) {
        for (const k of state.classes) pixels.data[4 * at + c] += (rgb[k][c] * counts[k][at]) / count;
      }
      pixels.data[4 * at + 3] = 40 + 190 * Math.sqrt(count / grid.most);
    });
    pen.putImageData(pixels, 0, 0);
    const perUnit = grid.most / areaOf(image, [0, 0, step, step]);
    const size = image.mpp ? `${Number((step * image.mpp).toPrecision(2))} µm` : `${step} px`;
    grid.about = `${side === "gt" ? "ground truth" : "detections"}, up to ${Number(perUnit.toPrecision(2)).toLocaleString("en")} per ${areaUnit(image)} in squares of ${size}; zoom in for outlines`;
    grid.drawn = key;
  }
  byId("density").textContent = grid.about;
  context.imageSmoothingEnabled = false;
  const [height, width] = image.size; // the last squares may reach over the edge
  context.drawImage(grid.map, 0, 0, width / grid.step, height / grid.step, 0, 0, width, height);
}

/** Draw the whole image small, with a frame around what is in view, unless all of it is. */
function drawOverview(image, { picture }, box) {
  const [height, width] = image.size;
  overview.hidden = box[2] - box[0] > width - 0.5 && box[3] - box[1] > height - 0.5;
  if (overview.hidden) return;
  const side = Math.min(170, stage.clientWidth / 3.5), factor = side / Math.max(width, height);
  const size = { width: Math.max(1, Math.round(width * factor)), height: Math.max(1, Math.round(height * factor)) };
  if (overview.width !== size.width || overview.height !== size.height) Object.assign(overview, size);
  const pen = overview.getContext("2d");
  pen.drawImage(picture, 0, 0, size.width, size.height);
  const [x, y, w, h] = [box[0], box[1], box[2] - box[0], box[3] - box[1]].map((value) => value * factor);
  for (const [colour, lineWidth] of [["#000", 4], ["#fff", 2]]) {
    Object.assign(pen, { strokeStyle: colour, lineWidth });
    pen.strokeRect(x, y, Math.max(w, 3), Math.max(h, 3));
  }
}

function showScale(image) {
  const perPx = (image.mpp || 1) / view.scale;
  const most = 140 * perPx, power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find((step) => step * power <= most);
  const bar = byId("scale");
  bar.style.width = `${length / perPx}px`;
  bar.textContent = !image.mpp ? `${length} px` : length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} µm`;
}

// ---- Moving -----------------------------------------------------------------------

function touchAction() {
  // One finger scrolls the page until the image is larger than its frame.
  canvas.style.touchAction = view.fitted && !state.isMeasuring ? "pan-y" : "none";
}

function fit() {
  const [height, width] = current().size;
  view.scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  view.x = (stage.clientWidth - width * view.scale) / 2;
  view.y = (stage.clientHeight - height * view.scale) / 2;
  view.fitted = true;
  touchAction();
  redraw();
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const [height, width] = current().size;
  const smallest = Math.min(stage.clientWidth / width, stage.clientHeight / height, 1) / 2;
  const scale = Math.min(64, Math.max(smallest, view.scale * factor));
  move(x - ((x - view.x) * scale) / view.scale - view.x, y - ((y - view.y) * scale) / view.scale - view.y, scale);
}

function move(dx, dy, scale = view.scale) {
  const [height, width] = current().size;
  const keep = (at, size, room) => Math.min(room - 40, Math.max(40 - size, at)); // in view
  view.scale = scale;
  view.x = keep(view.x + dx, width * scale, stage.clientWidth);
  view.y = keep(view.y + dy, height * scale, stage.clientHeight);
  view.fitted = false;
  touchAction();
  tip.hidden = true;
  redraw();
}

/** Move a point of the image to the middle. */
function centre(x, y, scale = view.scale) {
  move(stage.clientWidth / 2 - x * scale - view.x, stage.clientHeight / 2 - y * scale - view.y, scale);
}

// ---- Descriptions of cells --------------------------------------------------------

const area = (image, px) => `${px} px${image.mpp ? `, ${number(px * image.mpp ** 2, 1)} µm²` : ""}`;

function describeDetection(cell) {
  const image = current();
  const { classes: predicted, scores, match, iou, state: states, area: px } = image.results[state.result];
  const outcome = {
    [TRUE_POSITIVE]: () => `\ntrue positive, IoU ${number(iou[cell])}`,
    [MISCLASSIFIED]: () => `\nmisclassified: the ground truth is ${classes[image.gt.classes[match[cell]]]}, IoU ${number(iou[cell])}`,
    [UNMATCHED]: () => "\nfalse positive",
    [IGNORED]: () => (states[cell] ? "\nignored: in a crowd region" : "\nignored: hidden under detections of higher score"),
  }[detectionOutcome(image, cell)]?.() ?? "";
  return `detection: ${classes[predicted[cell]]}, score ${number(scores[cell])}, ${area(image, px[cell])}${outcome}`;
}

function describeGt(cell) {
  const image = current();
  const { by } = matchAt(image);
  const detections = image.results[state.result];
  const match = by[cell] >= 0 ? `IoU ${number(detections.iou[by[cell]])}, score ${number(detections.scores[by[cell]])}` : "";
  const outcome = {
    0: image.unusualCells?.get(cell),
    [TRUE_POSITIVE]: `detected, ${match}`,
    [MISCLASSIFIED]: `detected as ${classes[detections?.classes[by[cell]]]}, ${match}`,
    [UNMATCHED]: "false negative",
    [IGNORED]: image.gt.state[cell] === 2 ? "ignored: a crowd region" : "ignored: hidden under other ground-truth cells",
  }[gtOutcome(image, by, cell)];
  return `ground truth: ${classes[image.gt.classes[cell]]}, ${area(image, image.gt.area[cell])}${outcome ? `\n${outcome}` : ""}`;
}

/** Return the smallest visible ground-truth cell and detection at a point of the canvas; -1 for none. */
function cellsAt(x, y) {
  const px = (x - view.x) / view.scale, py = (y - view.y) / view.scale;
  const image = current();
  const { by } = matchAt(image);
  const { T, P, H, M, F, N, X } = state.layers;
  function smallest(cells, areas, isVisible) {
    let best = -1;
    for (const { id, box, path } of cells) {
      if (px < box[0] || px > box[2] || py < box[1] || py > box[3] || (best >= 0 && areas[best] <= areas[id])) continue;
      if (isVisible(id) && probe.isPointInPath(path, px, py, "evenodd")) best = id;
    }
    return best;
  }
  const isOn = (outcome, unmatched) => ({ [TRUE_POSITIVE]: H, [MISCLASSIFIED]: N, [UNMATCHED]: unmatched })[outcome];
  const gt = smallest(drawn.gt, image.gt.area, (t) => state.classes.has(image.gt.classes[t]) &&
    (T || isOn(gtOutcome(image, by, t), M) || (X && image.unusualCells?.has(t))));
  const detection = smallest(drawn.detection, image.results[state.result]?.area, (d) =>
    isOfShownClass(image, d) && (P || isOn(detectionOutcome(image, d), F)));
  return { gt, detection };
}

/** Describe the square of the density map at a point of the canvas. */
function densityAt(x, y) {
  const image = current(), side = densitySide();
  if (!side) return "";
  const { step, columns, rows, counts } = grids.get(side);
  const column = Math.floor((x - view.x) / view.scale / step), row = Math.floor((y - view.y) / view.scale / step);
  if (column < 0 || row < 0 || column >= columns || row >= rows) return "";
  const [bottom, right] = [row + 1, column + 1].map((end, axis) => Math.min(end * step, image.size[axis]));
  const square = areaOf(image, [column * step, row * step, right, bottom]);
  return shownClasses().map((k) => [k, counts[k][row * columns + column]]).filter(([, n]) => n)
    .map(([k, n]) => `${classes[k]}: ${n}, ${Math.round(n / square).toLocaleString("en")} per ${areaUnit(image)}`).join("\n");
}

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = !text;
  tip.style.left = `${Math.max(0, Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 14, stage.clientHeight - tip.offsetHeight - 4))}px`;
}

function describeAt(x, y) {
  if (!cache.get(state.image)?.value) return "";
  const { gt, detection } = cellsAt(x, y);
  const text = !byId("density").hidden ? densityAt(x, y)
    : [gt >= 0 && describeGt(gt), detection >= 0 && describeDetection(detection)].filter(Boolean).join("\n");
  showTip(text, x, y);
  return text;
}

/** Zoom to a cell and describe it. */
function select(side, cell) {
  const image = current();
  const { x, y, area: areas } = sideOf(image, side).cells;
  if (!areas[cell]) return;
  state.selected = { side, cell };
  const extent = 1.3 * Math.sqrt(areas[cell]);
  const room = Math.min(stage.clientWidth, stage.clientHeight);
  const scale = Math.min(24, Math.max(view.scale, room / 5 / extent));
  centre(x[cell] + 0.5, y[cell] + 0.5, scale);
  const text = side === "gt" ? describeGt(cell) : describeDetection(cell);
  const beside = (extent / 2) * scale - 8;
  showTip(text, (x[cell] + 0.5) * scale + view.x + beside, (y[cell] + 0.5) * scale + view.y + beside);
  byId("status").textContent = text;
}

// ---- Pointers: one drags or draws a rectangle, two pinch, a hovering one describes cells ---

const pointers = new Map();
let travelled = 0, corner = null; // corner: where the rectangle begins, in pixels of the image

const place = (event, element = canvas) => {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

/** Draw the rectangle from its corner to a point of the canvas, in whole pixels of the image. */
function measureTo(x, y) {
  const [height, width] = current().size;
  const to = [Math.min(width, Math.max(0, (x - view.x) / view.scale)), Math.min(height, Math.max(0, (y - view.y) / view.scale))];
  const [x0, x1] = [corner[0], to[0]].sort((a, b) => a - b), [y0, y1] = [corner[1], to[1]].sort((a, b) => a - b);
  const region = [Math.floor(x0), Math.floor(y0), Math.ceil(x1), Math.ceil(y1)];
  state.region = region[2] > region[0] && region[3] > region[1] ? region : null;
  redraw();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!current()) return;
  pointers.set(event.pointerId, place(event));
  canvas.setPointerCapture(event.pointerId);
  travelled = 0;
  const [x, y] = place(event);
  const isFirst = pointers.size === 1 && (state.isMeasuring || event.shiftKey);
  corner = isFirst ? [(x - view.x) / view.scale, (y - view.y) / view.scale].map((at, axis) => Math.min(current().size[1 - axis], Math.max(0, at))) : null;
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = place(event);
  const before = pointers.get(event.pointerId);
  if (!before) describeAt(x, y);
  if (!before || !current()) return;
  pointers.set(event.pointerId, [x, y]);
  travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
  if (pointers.size === 2) {
    const [[otherX, otherY]] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const apart = ([a, b]) => Math.hypot(a - otherX, b - otherY) || 1;
    zoom(apart([x, y]) / apart(before), (x + otherX) / 2, (y + otherY) / 2);
  } else if (corner) {
    measureTo(x, y);
  } else if (travelled > 3 && !(event.pointerType === "touch" && view.fitted)) {
    move(x - before[0], y - before[1]);
  }
});
for (const type of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(type, (event) => {
    pointers.delete(event.pointerId);
    if (type === "pointerup" && travelled <= 3) byId("status").textContent = describeAt(...place(event)) || byId("status").textContent;
    corner = null;
  });
}
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
canvas.addEventListener("dblclick", (event) => current() && zoom(2, ...place(event)));
canvas.addEventListener("wheel", (event) => {
  // The page must stay scrollable: the wheel zooms only after a click into the image.
  if (!current() || !(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), ...place(event));
}, { passive: false });
for (const type of ["pointerdown", "pointermove"]) {
  overview.addEventListener(type, (event) => {
    if (type === "pointerdown") overview.setPointerCapture(event.pointerId);
    if (!event.buttons) return;
    const [x, y] = place(event, overview);
    centre((x / overview.clientWidth) * current().size[1], (y / overview.clientHeight) * current().size[0]);
  });
}
new ResizeObserver(() => (current() && view.fitted ? fit() : redraw())).observe(stage);
