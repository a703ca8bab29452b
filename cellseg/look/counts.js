// What the page counts: matches at the minimum score, sums of images, cells in a box, densities.
// The files of this folder are one script; cellseg/look/report.py joins them.

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("index").textContent);
const { images, classes, colours } = page;
const isScored = page.has_ground_truth && page.results.length > 0;
const state = {
  image: -1,
  result: page.results.length - 1, // of two results B is shown first; -1 for none
  threshold: page.threshold,
  classes: new Set(classes.keys()), // the classes that are shown
  layers: {},
  sort: "",
  selected: null, // {side: "gt" or "detection", cell}
  region: null, // the rectangle that the user drew, [x0, y0, x1, y1] in whole pixels of the image
  isMeasuring: false, // whether dragging draws it
};
const TRUE_POSITIVE = 1, MISCLASSIFIED = 2, UNMATCHED = 3, IGNORED = 4; // outcomes of a cell

images.forEach((image, at) => {
  image.at = at;
  if (!page.results.length) image.unusualCells = new Map(image.unusual);
});

function make(tag, properties = {}, ...children) {
  // Text is added as text, never as HTML: a name may contain anything.
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const number = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
/** Return a density with thousands separators, as in the tables of all images. */
const density = (value) => {
  const digits = value < 10 ? 2 : 1;
  return Number.isFinite(value) ? value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) : "–";
};
/** Return a score with two digits, or as many as it has. */
const scoreText = (score) => (score.toFixed(2) == score ? score.toFixed(2) : String(score));
const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
const sum = (values) => values.reduce((a, b) => a + b, 0);
const shownClasses = () => [...state.classes].sort((a, b) => a - b);
const ofShown = (values) => sum([...state.classes].map((k) => values[k]));

// ---- Matching ---------------------------------------------------------------------
// Detections are sorted by falling score; each has the ground-truth cell of IoU above 0.5.
// A lower score never takes pixels from a higher one, so a threshold only shortens the
// list: the matches of the remaining detections stay.

/** Return the number of detections at the threshold, and the detection of each ground-truth cell. */
function matchAt(image, result = state.result) {
  const known = (image.matched ||= []);
  if (known[result]?.threshold === state.threshold) return known[result];
  const detections = image.results[result];
  const by = new Int32Array(image.gt.classes.length).fill(-1);
  let n = 0;
  while (detections && n < detections.scores.length && detections.scores[n] >= state.threshold) {
    if (detections.match?.[n] >= 0) by[detections.match[n]] = n;
    n++;
  }
  return (known[result] = { threshold: state.threshold, n, by });
}

function detectionOutcome(image, cell) {
  if (!isScored) return 0;
  const detections = image.results[state.result];
  const match = detections.match?.[cell] ?? -1;
  if (match >= 0) return image.gt.classes[match] === detections.classes[cell] ? TRUE_POSITIVE : MISCLASSIFIED;
  return detections.state[cell] === 1 ? UNMATCHED : IGNORED;
}

function gtOutcome(image, by, cell) {
  if (!isScored) return 0;
  if (by[cell] >= 0) return detectionOutcome(image, by[cell]);
  return image.gt.state[cell] === 1 ? UNMATCHED : IGNORED;
}

const zeros = () => new Float64Array(classes.length);

function emptySums() {
  const matrix = Array.from({ length: classes.length + 1 }, () => new Float64Array(classes.length + 1));
  return { gt: zeros(), detections: zeros(), tp: zeros(), fp: zeros(), iou: zeros(), scores: zeros(), matrix, anyTp: 0, anyFp: 0, anyIou: 0 };
}

/** Add an image to the sums from which evaluate.py computes its scores at this threshold, or to counts. */
function addTo(sums, image, result) {
  const { gt } = image;
  const detections = image.results[result];
  const { n, by } = matchAt(image, result);
  const last = classes.length;
  gt.classes.forEach((k, cell) => {
    if (gt.state[cell] === 2 || (isScored && !gt.state[cell])) return;
    sums.gt[k]++;
    sums.matrix[k][by[cell] < 0 ? last : detections.classes[by[cell]]]++;
  });
  for (let cell = 0; cell < n; cell++) {
    const k = detections.classes[cell];
    const match = detections.match?.[cell] ?? -1;
    const counts = detections.state[cell] === 1;
    if (detections.state[cell] > 0 || !isScored) {
      sums.detections[k]++;
      sums.scores[k] += detections.scores[cell];
    }
    if (match >= 0) {
      sums.anyTp++;
      sums.anyIou += detections.iou[cell];
    } else if (counts) {
      sums.anyFp++;
      sums.matrix[last][k]++;
    }
    if (match >= 0 && gt.classes[match] === k) {
      sums.tp[k]++;
      sums.iou[k] += detections.iou[cell];
    } else if (counts) sums.fp[k]++;
  }
  return sums;
}

/** Return the counts and scores of an image, of the classes that are shown. */
function summarize(image, result = state.result) {
  const sums = addTo(emptySums(), image, result);
  const last = classes.length;
  const gt = ofShown(sums.gt), detections = ofShown(sums.detections), tp = ofShown(sums.tp);
  const errors = gt - tp + ofShown(sums.fp);
  let misclassified = 0;
  for (let a = 0; a < last; a++) {
    for (let b = 0; b < last; b++) {
      if (a !== b && (state.classes.has(a) || state.classes.has(b))) misclassified += sums.matrix[a][b];
    }
  }
  const isEmpty = tp + errors === 0; // nothing to detect, nothing detected: sorted last
  return {
    gt, detections, tp, misclassified,
    fn: ofShown(sums.matrix.map((row) => row[last])), fp: ofShown(sums.matrix[last]),
    f1: isEmpty ? 2 : (2 * tp) / (2 * tp + errors),
    pq: isEmpty ? 2 : ofShown(sums.iou) / (tp + errors / 2),
    score: detections ? ofShown(sums.scores) / detections : 2,
  };
}

// ---- Boxes and densities ----------------------------------------------------------
// A cell is where the middle of its bounding box is. All count, also those without a pixel in the
// label maps of the scores, but not crowds.

/** Return the cells of a side and how many of them, from the first on, have the minimum score. */
function sideOf(image, side) {
  return side === "gt"
    ? { cells: image.gt, n: image.gt.classes.length, counts: (t) => image.gt.state[t] !== 2 }
    : { cells: image.results[state.result], n: matchAt(image).n, counts: () => true };
}

/** Count the cells of a side by class in a box of the image, [x0, y0, x1, y1], the end exclusive. */
function countIn(image, side, [x0, y0, x1, y1]) {
  const found = zeros();
  const { cells, n, counts } = sideOf(image, side);
  for (let c = 0; c < n; c++) {
    const x = cells.x[c], y = cells.y[c];
    if (x >= x0 && x < x1 && y >= y0 && y < y1 && counts(c)) found[cells.classes[c]]++;
  }
  return found;
}

/** Return the size of a box in mm², or in megapixels if the size of a pixel is unknown. */
const areaOf = (image, [x0, y0, x1, y1]) => (Math.max(0, x1 - x0) * Math.max(0, y1 - y0) * (image.mpp || 1) ** 2) / 1e6;
const areaUnit = (image) => (image.mpp ? "mm²" : "Mpx");

const grids = new Map(); // the last density of each side

/** Count the cells of each class in squares of `step` px: {columns, rows, counts by class}. */
function densityGrid(image, side, step) {
  const key = [image.at, state.result, state.threshold, step].join();
  if (grids.get(side)?.key === key) return grids.get(side);
  const columns = Math.ceil(image.size[1] / step), rows = Math.ceil(image.size[0] / step);
  const counts = classes.map(() => new Uint32Array(columns * rows));
  const { cells, n, counts: does } = sideOf(image, side);
  for (let c = 0; c < n; c++) {
    if (does(c)) counts[cells.classes[c]][Math.floor(cells.y[c] / step) * columns + Math.floor(cells.x[c] / step)]++;
  }
  const grid = { key, step, columns, rows, counts };
  grids.set(side, grid);
  return grid;
}
