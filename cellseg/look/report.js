"use strict";
(() => {
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
  };
  const TRUE_POSITIVE = 1, MISCLASSIFIED = 2, UNMATCHED = 3, IGNORED = 4; // outcomes of a cell

  function make(tag, properties = {}, ...children) {
    // Text is added as text, never as HTML: a name may contain anything.
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // ---- Matching -------------------------------------------------------------------
  // Detections are sorted by falling score; each has the ground-truth cell of IoU above 0.5.
  // A lower score never takes pixels from a higher one, so a threshold only shortens the
  // list: the matches of the remaining detections stay.

  /** Return the number of detections at the threshold, and the detection of each ground-truth cell. */
  function matchAt(image, result = state.result) {
    const detections = image.results[result];
    const by = new Int32Array(image.gt.classes.length).fill(-1);
    let n = 0;
    while (detections && n < detections.scores.length && detections.scores[n] >= state.threshold) {
      if (detections.match[n] >= 0) by[detections.match[n]] = n;
      n++;
    }
    return { n, by };
  }

  function detectionOutcome(image, cell) {
    if (!isScored) return 0;
    const detections = image.results[state.result];
    const match = detections.match[cell];
    if (match >= 0) return image.gt.classes[match] === detections.classes[cell] ? TRUE_POSITIVE : MISCLASSIFIED;
    return detections.state[cell] === 1 ? UNMATCHED : IGNORED;
  }

  function gtOutcome(image, by, cell) {
    if (!isScored) return 0;
    if (by[cell] >= 0) return detectionOutcome(image, by[cell]);
    return image.gt.state[cell] === 1 ? UNMATCHED : IGNORED;
  }

  function emptySums() {
    const [gt, detections, tp, fp, iou, scores] = Array.from({ length: 6 }, () => new Float64Array(classes.length));
    const matrix = Array.from({ length: classes.length + 1 }, () => new Float64Array(classes.length + 1));
    return { gt, detections, tp, fp, iou, scores, matrix, anyTp: 0, anyFp: 0, anyIou: 0 };
  }

  /** Add an image to the sums from which evaluate.py computes its scores at this threshold. */
  function addTo(sums, image, result) {
    const { gt } = image;
    const detections = image.results[result];
    const { n, by } = matchAt(image, result);
    const last = classes.length;
    gt.classes.forEach((k, cell) => {
      if (gt.state[cell] !== 1) return;
      sums.gt[k]++;
      sums.matrix[k][by[cell] < 0 ? last : detections.classes[by[cell]]]++;
    });
    for (let cell = 0; cell < n; cell++) {
      const k = detections.classes[cell];
      const match = detections.match[cell];
      const counts = detections.state[cell] === 1;
      if (detections.state[cell] > 0) {
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

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const ofShown = (values) => sum([...state.classes].map((k) => values[k]));

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

  // ---- Outlines -------------------------------------------------------------------

  const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
  const VALUE = new Uint8Array(128);
  [...DIGITS].forEach((letter, value) => { VALUE[letter.charCodeAt(0)] = value; });

  /** Undo `encode_outlines` of cellseg/look/gallery.py. */
  function decodeOutlines(text) {
    let at = 0;
    function next() {
      let value = 0, factor = 1, digit;
      do {
        digit = VALUE[text.charCodeAt(at++)];
        value += (digit & 31) * factor;
        factor *= 32;
      } while (digit > 31);
      return value % 2 ? -(value + 1) / 2 : value / 2;
    }
    const cells = [];
    let x0 = 0, y0 = 0;
    while (at < text.length) {
      const path = new Path2D();
      const box = [Infinity, Infinity, -Infinity, -Infinity];
      let area = 0; // by Green's theorem; holes run the other way and are subtracted
      for (let rings = next(); rings > 0; rings--) {
        const steps = next();
        let x = (x0 += next()), y = (y0 += next());
        path.moveTo(x, y);
        for (let step = 0; step < steps; step++) {
          box[0] = Math.min(box[0], x);
          box[1] = Math.min(box[1], y);
          const move = next();
          if (step % 2) y += move;
          else {
            x += move;
            area += y * move;
          }
          box[2] = Math.max(box[2], x);
          box[3] = Math.max(box[3], y);
          path.lineTo(x, y);
        }
        path.closePath();
      }
      cells.push({ path, box, area: Math.abs(area) });
    }
    return cells;
  }

  const wholeFile = new Promise((done) => {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
    else done();
  });
  const cache = new Map();

  /** Load the picture and outlines of an image; the last six are kept. */
  async function load(at) {
    if (cache.has(at)) return cache.get(at);
    if (!byId(`image-${at}`)) await wholeFile;
    const raw = JSON.parse(byId(`image-${at}`).textContent);
    const picture = new Image();
    picture.src = raw.picture;
    await picture.decode();
    const loaded = { picture, gt: decodeOutlines(raw.gt), results: raw.results.map(decodeOutlines) };
    cache.set(at, loaded);
    if (cache.size > 6) cache.delete(cache.keys().next().value);
    return loaded;
  }

  // ---- The viewer -----------------------------------------------------------------

  const canvas = byId("canvas"), stage = byId("stage"), tip = byId("tip");
  const context = canvas.getContext("2d");
  const probe = document.createElement("canvas").getContext("2d");
  const view = { scale: 1, x: 0, y: 0, fitted: true }; // canvas px = image px * scale + x, y
  let shown = null; // {image, picture, gt, results}
  let frame = 0;

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

  /** Return whether a detection has a shown class, or is mistaken for one. */
  const isOfShownClass = (image, cell) => {
    const { classes: predicted, match } = image.results[state.result];
    return state.classes.has(predicted[cell]) ||
      (detectionOutcome(image, cell) === MISCLASSIFIED && state.classes.has(image.gt.classes[match[cell]]));
  };

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

  function draw() {
    frame = 0;
    const ratio = pixelRatio();
    const width = Math.round(stage.clientWidth * ratio), height = Math.round(stage.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!shown) return;
    const image = images[shown.image];
    const scale = view.scale * ratio;
    context.setTransform(scale, 0, 0, scale, view.x * ratio, view.y * ratio);
    context.imageSmoothingEnabled = view.scale < 4; // show single pixels when enlarged
    context.drawImage(shown.picture, 0, 0, image.size[1], image.size[0]);

    const inView = ({ box }) =>
      box[2] * view.scale + view.x > 0 && box[0] * view.scale + view.x < stage.clientWidth &&
      box[3] * view.scale + view.y > 0 && box[1] * view.scale + view.y < stage.clientHeight;
    const { n, by } = matchAt(image);
    const detections = shown.results[state.result] || [];
    const fills = {}, lines = { T: [], P: [] };
    LAYERS.forEach(({ key }) => { fills[key] = new Path2D(); });
    shown.gt.forEach((cell, t) => {
      const k = image.gt.classes[t];
      if (!inView(cell) || !state.classes.has(k)) return;
      if (state.layers.T) (lines.T[k] ||= new Path2D()).addPath(cell.path);
      if (gtOutcome(image, by, t) === UNMATCHED) fills.M.addPath(cell.path);
      if (image.unusualCells?.has(t)) fills.X.addPath(cell.path);
    });
    for (let d = n - 1; d >= 0; d--) {
      const { path } = detections[d];
      if (!inView(detections[d]) || !isOfShownClass(image, d)) continue;
      const k = image.results[state.result].classes[d];
      if (state.classes.has(k) && state.layers.P) (lines.P[k] ||= new Path2D()).addPath(path);
      const key = { [TRUE_POSITIVE]: "H", [UNMATCHED]: "F", [MISCLASSIFIED]: "N" }[detectionOutcome(image, d)];
      if (key) fills[key].addPath(path);
    }
    for (const { key, colour } of LAYERS) {
      if (!colour || !state.layers[key]) continue;
      const pattern = context.createPattern(patternTile(key, colour, ratio), "repeat");
      pattern.setTransform(new DOMMatrix().scale(1 / scale));
      context.fillStyle = pattern;
      context.fill(fills[key]); // holes run the other way, so that none is filled
      stroke(fills[key], colour, 1, []);
    }
    // The white edge of detections shows between their dashes, also on the ground truth.
    const fine = view.scale < 1 ? 0.7 : 1;
    for (const path of Object.values(lines.T)) stroke(path, "rgba(0,0,0,.65)", 3.2 * fine, []);
    lines.T.forEach((path, k) => stroke(path, colours[k], 1.7 * fine, []));
    for (const path of Object.values(lines.P)) stroke(path, "rgba(255,255,255,.85)", 2.4 * fine, []);
    lines.P.forEach((path, k) => stroke(path, colours[k], 2 * fine, [6, 4]));
    const selected = selectedCell();
    if (selected) {
      stroke(selected.path, "#000", 6, []);
      stroke(selected.path, "#fff", 3, []);
    }
    // Tests wait for these, the benchmark measures the time.
    canvas.dataset.image = shown.image;
    document.documentElement.dataset.ready ||= String(Math.round(performance.now()));
  }

  function stroke(path, colour, width, dashes) {
    context.strokeStyle = colour;
    context.lineWidth = width / view.scale;
    context.lineJoin = "round";
    context.setLineDash(dashes.map((length) => length / view.scale));
    context.stroke(path);
  }

  function selectedCell() {
    if (!state.selected || !shown) return null;
    const cells = state.selected.side === "gt" ? shown.gt : shown.results[state.result];
    return cells?.[state.selected.cell];
  }

  function fit() {
    const [height, width] = images[shown.image].size;
    view.scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    view.x = (stage.clientWidth - width * view.scale) / 2;
    view.y = (stage.clientHeight - height * view.scale) / 2;
    view.fitted = true;
    // One finger scrolls the page until the image is larger than its frame.
    canvas.style.touchAction = "pan-y";
    redraw();
  }

  function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const [height, width] = images[shown.image].size;
    const smallest = Math.min(stage.clientWidth / width, stage.clientHeight / height, 1) / 2;
    const scale = Math.min(64, Math.max(smallest, view.scale * factor));
    move(x - ((x - view.x) * scale) / view.scale - view.x, y - ((y - view.y) * scale) / view.scale - view.y, scale);
  }

  function move(dx, dy, scale = view.scale) {
    const [height, width] = images[shown.image].size;
    const keep = (at, size, room) => Math.min(room - 40, Math.max(40 - size, at)); // in view
    view.scale = scale;
    view.x = keep(view.x + dx, width * scale, stage.clientWidth);
    view.y = keep(view.y + dy, height * scale, stage.clientHeight);
    view.fitted = false;
    canvas.style.touchAction = "none";
    tip.hidden = true;
    redraw();
  }

  async function open(at, selected = null) {
    state.image = at;
    state.selected = null;
    tip.hidden = true;
    for (const button of byId("list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
    const button = images[at].button;
    button.setAttribute("aria-current", "true");
    // Not scrollIntoView, which would also scroll the page.
    const list = byId("list"), item = button.parentElement;
    if (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop - list.clientHeight / 3;
    list.scrollLeft = item.offsetLeft - list.clientWidth / 3;
    let loaded;
    try {
      loaded = await load(at);
    } catch (error) {
      byId("status").textContent = `can't be shown: ${error.message}`;
      return;
    }
    if (state.image !== at) return; // another one was opened meanwhile
    shown = { image: at, ...loaded };
    if (!page.results.length) images[at].unusualCells = new Map(images[at].unusual);
    fit();
    showStatus();
    if (selected) select(selected.side, selected.cell);
  }

  // ---- Descriptions of cells ------------------------------------------------------

  const number = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

  function describeDetection(cell) {
    const image = images[shown.image];
    const { classes: predicted, scores, match, iou, state: states } = image.results[state.result];
    const outcome = {
      [TRUE_POSITIVE]: `\ntrue positive, IoU ${number(iou[cell])}`,
      [MISCLASSIFIED]: `\nmisclassified: the ground truth is ${classes[image.gt.classes[match[cell]]]}, IoU ${number(iou[cell])}`,
      [UNMATCHED]: "\nfalse positive",
      [IGNORED]: states[cell] ? "\nignored: in a crowd region" : "\nignored: hidden under detections of higher score",
    }[detectionOutcome(image, cell)] ?? "";
    return `detection: ${classes[predicted[cell]]}, score ${number(scores[cell])}, ${shown.results[state.result][cell].area} px${outcome}`;
  }

  function describeGt(cell) {
    const image = images[shown.image];
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
    return `ground truth: ${classes[image.gt.classes[cell]]}, ${shown.gt[cell].area} px${outcome ? `\n${outcome}` : ""}`;
  }

  /** Return the smallest visible ground-truth cell and detection at a point of the canvas; -1 for none. */
  function cellsAt(x, y) {
    const px = (x - view.x) / view.scale, py = (y - view.y) / view.scale;
    const image = images[shown.image];
    const { n, by } = matchAt(image);
    const { T, P, H, M, F, N, X } = state.layers;
    function smallest(cells, count, isVisible) {
      let best = -1;
      for (let c = 0; c < count; c++) {
        const { box, path, area } = cells[c];
        if (px < box[0] || px > box[2] || py < box[1] || py > box[3] || (best >= 0 && cells[best].area <= area)) continue;
        if (isVisible(c) && probe.isPointInPath(path, px, py, "evenodd")) best = c;
      }
      return best;
    }
    const isOn = (outcome, unmatched) => ({ [TRUE_POSITIVE]: H, [MISCLASSIFIED]: N, [UNMATCHED]: unmatched })[outcome];
    const gt = smallest(shown.gt, shown.gt.length, (t) => state.classes.has(image.gt.classes[t]) &&
      (T || isOn(gtOutcome(image, by, t), M) || (X && image.unusualCells?.has(t))));
    const detection = smallest(shown.results[state.result] || [], n, (d) =>
      isOfShownClass(image, d) && (P || isOn(detectionOutcome(image, d), F)));
    return { gt, detection };
  }

  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = !text;
    tip.style.left = `${Math.max(0, Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 14, stage.clientHeight - tip.offsetHeight - 4))}px`;
  }

  function describeAt(x, y) {
    if (!shown) return "";
    const { gt, detection } = cellsAt(x, y);
    const text = [gt >= 0 && describeGt(gt), detection >= 0 && describeDetection(detection)].filter(Boolean).join("\n");
    showTip(text, x, y);
    return text;
  }

  const hasPixels = ({ box }) => Number.isFinite(box[0]);

  /** Zoom to a cell and describe it. */
  function select(side, cell) {
    state.selected = { side, cell };
    const target = selectedCell();
    if (!target || !hasPixels(target)) return;
    const [x0, y0, x1, y1] = target.box;
    const room = Math.min(stage.clientWidth, stage.clientHeight);
    const scale = Math.min(24, Math.max(view.scale, room / 5 / Math.max(x1 - x0, y1 - y0)));
    move(stage.clientWidth / 2 - ((x0 + x1) / 2) * scale - view.x, stage.clientHeight / 2 - ((y0 + y1) / 2) * scale - view.y, scale);
    const text = side === "gt" ? describeGt(cell) : describeDetection(cell);
    showTip(text, x1 * scale + view.x - 8, y1 * scale + view.y - 8);
    byId("status").textContent = text;
  }

  /** Return the cells that , and . step through: errors, unusual cells, or detections by rising score. */
  function cellsToCheck() {
    const image = images[shown.image];
    const listed = (side, cells) => cells.map((cell) => ({ side, cell }));
    if (!page.results.length) return listed("gt", [...image.unusualCells.keys()]);
    const { n, by } = matchAt(image);
    const kept = [...Array(n).keys()].filter((cell) => state.classes.has(image.results[state.result].classes[cell]));
    if (!isScored) return listed("detection", kept.filter((cell) => hasPixels(shown.results[state.result][cell])).reverse());
    const undetected = [...shown.gt.keys()]
      .filter((cell) => state.classes.has(image.gt.classes[cell]) && gtOutcome(image, by, cell) === UNMATCHED)
      .sort((a, b) => shown.gt[b].area - shown.gt[a].area);
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

  // ---- The list, and the tables of all images -------------------------------------

  const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
  function listText(image) {
    const { gt, detections, fn, fp, misclassified, score } = summarize(image);
    if (!page.results.length) return `${plural(gt, "cell")}${image.unusual.length ? `, ${image.unusual.length} unusual` : ""}`;
    if (!isScored) return `${plural(detections, "detection")}${detections ? `\nmean score ${number(score)}` : ""}`;
    const f1 = (result) => number(Math.min(1, summarize(image, result).f1));
    const quality = page.results.length > 1 ? `F1 A ${f1(0)}, B ${f1(1)}` : `F1 ${f1(0)}`;
    return `${quality}\n${fn}\u00a0FN, ${fp}\u00a0FP, ${misclassified}\u00a0misclassified`;
  }

  function showStatus() {
    if (!shown) return;
    const image = images[shown.image];
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
    const caption = `Detections${of} with a score of ${number(state.threshold)} or more, all images.`;
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
    fillTable(byId("confusion"), `Confusion matrix${of}: ground truth (rows) by predicted class (columns)`, ["", ...classes, "not detected"],
      sums.matrix.map((line, a) => [classes[a] ?? "background", ...[...line].map((value, b) => (a + b === 2 * classes.length ? "" : value))]),
      (a, b) => 0.6 * sums.matrix[a][b] / totals[a]);
  }

  // ---- Controls -------------------------------------------------------------------

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

  function toggleClass(k) {
    if (!state.classes.delete(k)) state.classes.add(k);
    press(byId(`class-${k}`), state.classes.has(k));
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
    const button = make("button", { id: `class-${k}`, onclick: () => toggleClass(k) }, swatch(colours[k]), name);
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
    byId("score-shown").textContent = number(state.threshold);
    let isWaiting = false;
    slider.oninput = () => {
      state.threshold = slider.valueAsNumber;
      byId("score-shown").textContent = number(state.threshold);
      tip.hidden = true;
      if (isWaiting) return;
      isWaiting = true;
      requestAnimationFrame(() => {
        isWaiting = false;
        relabel();
      });
    };
    slider.onchange = sort; // not while it moves, or the list would jump
  }
  images.forEach((image, at) => {
    image.at = at;
    const thumb = make("img", { src: image.thumb, alt: "", loading: "lazy", decoding: "async" });
    image.button = make("button", { value: image.at, title: image.name, onclick: () => open(image.at) },
      thumb, make("b", { textContent: image.name }), make("span"));
    byId("list").append(make("li", {}, image.button));
  });
  const buttons = { previous: () => step(-1), next: () => step(1), in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit };
  for (const [id, act] of Object.entries(buttons)) byId(id).onclick = () => shown && act();
  byId("help-open").onclick = () => byId("help").showModal();
  for (const button of document.querySelectorAll(".examples button")) {
    button.onclick = () => {
      const { image, result, cell } = button.dataset;
      if (result >= 0 && page.results.length > 1) showResult(Number(result));
      open(Number(image), { side: result < 0 ? "gt" : "detection", cell: Number(cell) });
      byId("viewer").scrollIntoView({ block: "nearest" });
      canvas.focus({ preventScroll: true });
    };
  }

  const KEYS = [
    ["← →", "previous, next image"],
    [", .", `previous, next ${page.results.length ? (isScored ? "error" : "detection, by rising score,") : "unusual cell"} in the image`],
    ["1 – 9", "show or hide a class"],
    ...LAYERS.map(({ key, name, about }) => [key, `show or hide ${name} (${about})`]),
    ...(page.results.length > 1 ? [["R", "switch between A and B"]] : []),
    ["+ − 0", "zoom in, zoom out, fit"],
    ["Shift + arrows", "move the image"],
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
    if (event.shiftKey && moves[key]) act = () => shown && move(...moves[key]);
    else if (key === "ArrowLeft" || key === "ArrowRight") act = () => step(key === "ArrowLeft" ? -1 : 1);
    else if (key === "+" || key === "=") act = () => shown && zoom(1.5);
    else if (key === "-" || key === "_") act = () => shown && zoom(1 / 1.5);
    else if (key === "0") act = () => shown && fit();
    else if (key === "." || key === ",") act = () => shown && stepCell(key === "." ? 1 : -1);
    else if (key === "?") act = () => byId("help").showModal();
    else if (/^[1-9]$/.test(key) && Number(key) <= classes.length) act = () => toggleClass(Number(key) - 1);
    else if (key.toUpperCase() in state.layers) act = () => toggleLayer(key.toUpperCase());
    else if (key.toUpperCase() === "R" && page.results.length > 1) act = () => showResult(1 - state.result);
    if (!act) return;
    event.preventDefault();
    act();
  });

  // ---- Pointers: one drags, two pinch, a hovering one describes cells -------------

  const pointers = new Map();
  let travelled = 0;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, place(event));
    canvas.setPointerCapture(event.pointerId);
    travelled = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    const before = pointers.get(event.pointerId);
    if (!before) describeAt(x, y);
    if (!before || !shown) return;
    pointers.set(event.pointerId, [x, y]);
    travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (pointers.size === 2) {
      const [[otherX, otherY]] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const apart = ([a, b]) => Math.hypot(a - otherX, b - otherY) || 1;
      zoom(apart([x, y]) / apart(before), (x + otherX) / 2, (y + otherY) / 2);
    } else if (travelled > 3 && !(event.pointerType === "touch" && view.fitted)) {
      move(x - before[0], y - before[1]);
    }
  });
  for (const type of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(type, (event) => {
      pointers.delete(event.pointerId);
      if (type === "pointerup" && travelled <= 3) byId("status").textContent = describeAt(...place(event)) || byId("status").textContent;
    });
  }
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => shown && zoom(2, ...place(event)));
  canvas.addEventListener("wheel", (event) => {
    // The page must stay scrollable: the wheel zooms only after a click into the image.
    if (!shown || !(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...place(event));
  }, { passive: false });
  new ResizeObserver(() => (shown && view.fitted ? fit() : redraw())).observe(stage);

  sort();
  relabel();
  step(-Infinity);
})();
