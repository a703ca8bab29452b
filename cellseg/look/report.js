"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("index").textContent);
  const { images, classes, colours } = page;
  const judging = page.truth && page.runs.length > 0;
  const state = {
    image: -1,
    run: page.runs.length - 1, // of two runs the second is the new one; -1 for none
    threshold: page.threshold,
    chosen: new Set(classes.keys()),
    layers: {},
    sort: "",
    picked: null, // {side: "truth" or "found", cell}
  };
  const HIT = 1, MISNAMED = 2, WRONG = 3, UNCOUNTED = 4; // what became of a cell

  function make(tag, properties = {}, ...children) {
    // Text goes in as text, never as HTML: a name may hold anything.
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // ---- Who found whom -------------------------------------------------------------
  // Detections come best first, each with the true cell that it shares more than half of
  // their union with. A lower score never takes pixels from a higher one, so a threshold
  // only cuts the list: matches of the cells that stay are what they were.

  function judge(image, run, threshold) {
    const found = image.runs[run];
    const by = new Int32Array(image.truth.classes.length).fill(-1);
    let n = 0;
    while (found && n < found.scores.length && found.scores[n] >= threshold) {
      if (found.match[n] >= 0) by[found.match[n]] = n;
      n++;
    }
    return { n, by };
  }

  function becameOfFound(image, run, cell) {
    const found = image.runs[run];
    const match = found.match[cell];
    if (match >= 0) return image.truth.classes[match] === found.classes[cell] ? HIT : MISNAMED;
    return found.state[cell] === 1 ? WRONG : UNCOUNTED;
  }

  function becameOfTruth(image, run, by, cell) {
    if (by[cell] >= 0) return becameOfFound(image, run, by[cell]);
    return image.truth.state[cell] === 1 ? WRONG : UNCOUNTED;
  }

  function emptyTally() {
    const k = classes.length;
    return {
      true: new Float64Array(k), found: new Float64Array(k), hits: new Float64Array(k),
      falseAlarms: new Float64Array(k), iou: new Float64Array(k),
      scores: new Float64Array(k), anyHits: 0, anyFalse: 0, anyIou: 0,
      matrix: Array.from({ length: k + 1 }, () => new Float64Array(k + 1)),
    };
  }

  /** Add an image to the sums that evaluate.py has at this threshold. */
  function addTo(sums, image, run, threshold) {
    const { truth } = image;
    const found = image.runs[run];
    const { n, by } = judge(image, run, threshold);
    const last = classes.length;
    truth.classes.forEach((k, cell) => {
      if (truth.state[cell] !== 1) return;
      sums.true[k]++;
      sums.matrix[k][by[cell] < 0 ? last : found.classes[by[cell]]]++;
    });
    for (let cell = 0; cell < n; cell++) {
      const k = found.classes[cell];
      const match = found.match[cell];
      const counts = found.state[cell] === 1;
      if (found.state[cell] > 0) {
        sums.found[k]++;
        sums.scores[k] += found.scores[cell];
      }
      if (match >= 0) {
        sums.anyHits++;
        sums.anyIou += found.iou[cell];
      } else if (counts) {
        sums.anyFalse++;
        sums.matrix[last][k]++;
      }
      if (match >= 0 && truth.classes[match] === k) {
        sums.hits[k]++;
        sums.iou[k] += found.iou[cell];
      } else if (counts) sums.falseAlarms[k]++;
    }
    return sums;
  }

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const ofChosen = (values) => sum([...state.chosen].map((k) => values[k]));

  /** What the list says of an image, of the chosen classes. */
  function brief(image, run = state.run) {
    const sums = addTo(emptyTally(), image, run, state.threshold);
    const last = classes.length;
    const hits = ofChosen(sums.hits);
    const wrong = ofChosen(sums.true) - hits + ofChosen(sums.falseAlarms);
    let misnamed = 0;
    for (let a = 0; a < last; a++) {
      for (let b = 0; b < last; b++) {
        if (a !== b && (state.chosen.has(a) || state.chosen.has(b))) misnamed += sums.matrix[a][b];
      }
    }
    const any = 2 * hits + wrong > 0;
    return {
      true: ofChosen(sums.true), found: ofChosen(sums.found), hits, misnamed,
      missed: ofChosen(sums.matrix.map((row) => row[last])), falseAlarms: ofChosen(sums.matrix[last]),
      f1: any ? (2 * hits) / (2 * hits + wrong) : 2, // nothing to find, nothing found: best
      pq: any ? ofChosen(sums.iou) / (hits + wrong / 2) : 2,
      sure: ofChosen(sums.found) ? ofChosen(sums.scores) / ofChosen(sums.found) : 2,
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
      let area = 0; // by Green's theorem: holes, walked the other way, take theirs off
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

  /** Picture and outlines of an image; those of the few seen last are kept. */
  async function load(at) {
    if (cache.has(at)) return cache.get(at);
    if (!byId(`image-${at}`)) await wholeFile;
    const raw = JSON.parse(byId(`image-${at}`).textContent);
    const picture = new Image();
    picture.src = raw.picture;
    await picture.decode();
    const loaded = { picture, truth: decodeOutlines(raw.truth), runs: raw.runs.map(decodeOutlines) };
    cache.set(at, loaded);
    if (cache.size > 6) cache.delete(cache.keys().next().value);
    return loaded;
  }

  // ---- The viewer -----------------------------------------------------------------

  const canvas = byId("canvas"), stage = byId("stage"), tip = byId("tip");
  const context = canvas.getContext("2d");
  const probe = document.createElement("canvas").getContext("2d");
  const view = { scale: 1, x: 0, y: 0, fitted: true }; // canvas px = image px * scale + x, y
  let shown = null; // {image, truth, runs, picture}
  let frame = 0;

  // A layer has a look that doesn't need its colour: a line or a pattern of its own.
  const LAYERS = [
    ...(page.truth ? [{ key: "T", name: "truth", on: true, line: [], about: "true cells: solid line, dark edge" }] : []),
    ...(page.runs.length ? [{ key: "P", name: "prediction", on: true, line: [6, 4], about: "found cells: dashed line, white edge" }] : []),
    ...(judging ? [
      { key: "H", name: "hits", on: false, colour: "#00e676", about: "found cells of the right class: plain tint" },
      { key: "M", name: "missed", on: true, colour: "#ff1744", about: "true cells that nothing found: slanted hatching" },
      { key: "F", name: "false alarms", on: true, colour: "#00e5ff", about: "found cells where there is none: dots" },
      { key: "N", name: "misnamed", on: true, colour: "#ffea00", about: "found cells of another class than the true one: level bars" },
    ] : []),
    ...(page.runs.length ? [] : [{ key: "X", name: "odd", on: true, colour: "#ff1744", about: "cells worth a second look: slanted hatching" }]),
  ];
  LAYERS.forEach((layer) => { state.layers[layer.key] = layer.on; });

  function tile(key, colour, ratio) {
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

  function redraw() {
    if (!frame) frame = requestAnimationFrame(draw);
  }

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
    context.imageSmoothingEnabled = view.scale < 4; // close up, pixels are pixels
    context.drawImage(shown.picture, 0, 0, image.size[1], image.size[0]);

    const inView = ({ box }) =>
      box[2] * view.scale + view.x > 0 && box[0] * view.scale + view.x < stage.clientWidth &&
      box[3] * view.scale + view.y > 0 && box[1] * view.scale + view.y < stage.clientHeight;
    const { n, by } = judge(image, state.run, state.threshold);
    const cells = shown.runs[state.run] || [];
    const of = (k) => state.chosen.has(k);
    const fills = {}, lines = { T: [], P: [] };
    LAYERS.forEach(({ key }) => { fills[key] = new Path2D(); });
    shown.truth.forEach((cell, t) => {
      if (!inView(cell)) return;
      const became = judging ? becameOfTruth(image, state.run, by, t) : 0;
      const k = image.truth.classes[t];
      if (of(k)) {
        if (state.layers.T) (lines.T[k] ||= new Path2D()).addPath(cell.path);
        if (became === WRONG) fills.M.addPath(cell.path);
        if (image.oddities?.has(t)) fills.X.addPath(cell.path);
      }
    });
    for (let d = n - 1; d >= 0; d--) {
      if (!inView(cells[d])) continue;
      const k = image.runs[state.run].classes[d];
      const became = judging ? becameOfFound(image, state.run, d) : 0;
      if (of(k) && state.layers.P) (lines.P[k] ||= new Path2D()).addPath(cells[d].path);
      if (became === HIT && of(k)) fills.H.addPath(cells[d].path);
      if (became === WRONG && of(k)) fills.F.addPath(cells[d].path);
      if (became === MISNAMED && (of(k) || of(image.truth.classes[image.runs[state.run].match[d]]))) {
        fills.N.addPath(cells[d].path);
      }
    }
    for (const { key, colour } of LAYERS) {
      if (!colour || !state.layers[key]) continue;
      const pattern = context.createPattern(tile(key, colour, ratio), "repeat");
      pattern.setTransform(new DOMMatrix().scale(1 / scale));
      context.fillStyle = pattern;
      context.fill(fills[key]); // holes are walked the other way, so that none is filled
      stroke(fills[key], colour, 1, []);
    }
    // The prediction's white edge shows between its dashes, also on top of the truth.
    const fine = view.scale < 1 ? 0.7 : 1;
    for (const path of Object.values(lines.T)) stroke(path, "rgba(0,0,0,.65)", 3.2 * fine, []);
    lines.T.forEach((path, k) => stroke(path, colours[k], 1.7 * fine, []));
    for (const path of Object.values(lines.P)) stroke(path, "rgba(255,255,255,.85)", 2.4 * fine, []);
    lines.P.forEach((path, k) => stroke(path, colours[k], 2 * fine, [6, 4]));
    const picked = pickedCell();
    if (picked) {
      stroke(picked.path, "#000", 6, []);
      stroke(picked.path, "#fff", 3, []);
    }
    // For who waits for it, and measures how long it took.
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

  function pickedCell() {
    if (!state.picked || !shown) return null;
    const cells = state.picked.side === "truth" ? shown.truth : shown.runs[state.run];
    return cells?.[state.picked.cell];
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
    const least = Math.min(stage.clientWidth / width, stage.clientHeight / height, 1) / 2;
    const scale = Math.min(64, Math.max(least, view.scale * factor));
    move(x - ((x - view.x) * scale) / view.scale - view.x, y - ((y - view.y) * scale) / view.scale - view.y, scale);
  }

  function move(dx, dy, scale = view.scale) {
    const [height, width] = images[shown.image].size;
    const keep = (at, size, room) => Math.min(room - 40, Math.max(40 - size, at)); // in sight
    view.scale = scale;
    view.x = keep(view.x + dx, width * scale, stage.clientWidth);
    view.y = keep(view.y + dy, height * scale, stage.clientHeight);
    view.fitted = false;
    canvas.style.touchAction = "none";
    tip.hidden = true;
    redraw();
  }

  async function open(at, pick = null) {
    state.image = at;
    state.picked = null;
    tip.hidden = true;
    for (const button of byId("list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
    const button = images[at].button;
    button.setAttribute("aria-current", "true");
    // Not scrollIntoView: it would move the page, too.
    const list = byId("list"), item = button.parentElement;
    if (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop - list.clientHeight / 3;
    list.scrollLeft = item.offsetLeft - list.clientWidth / 3;
    let loaded;
    try {
      loaded = await load(at);
    } catch (error) {
      byId("told").textContent = `can't be shown: ${error.message}`;
      return;
    }
    if (state.image !== at) return; // another one was asked for meanwhile
    shown = { image: at, ...loaded };
    if (page.runs.length === 0) images[at].oddities = new Map(images[at].odd);
    fit();
    tell();
    if (pick) choose(pick.side, pick.cell);
  }

  // ---- What is said of a cell -----------------------------------------------------

  const number = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

  function aboutFound(cell) {
    const image = images[shown.image], found = image.runs[state.run];
    const match = found.match[cell];
    const what = {
      0: "", [HIT]: `hit, IoU ${number(found.iou[cell])}`,
      [MISNAMED]: `misnamed: it is ${classes[image.truth.classes[match]]}, IoU ${number(found.iou[cell])}`,
      [WRONG]: "false alarm",
      [UNCOUNTED]: found.state[cell] ? "in a region of many cells: not counted" : "covered by cells of higher score: not counted",
    }[judging ? becameOfFound(image, state.run, cell) : 0];
    const area = shown.runs[state.run][cell].area;
    return `found: ${classes[found.classes[cell]]}, score ${number(found.scores[cell])}, ${area} px${what && `\n${what}`}`;
  }

  function aboutTruth(cell) {
    const image = images[shown.image];
    const { by } = judge(image, state.run, state.threshold);
    const d = by[cell];
    const found = image.runs[state.run];
    const what = {
      0: image.oddities?.get(cell) || "",
      [HIT]: d >= 0 && `found, IoU ${number(found.iou[d])}, score ${number(found.scores[d])}`,
      [MISNAMED]: d >= 0 && `called ${classes[found.classes[d]]}, IoU ${number(found.iou[d])}, score ${number(found.scores[d])}`,
      [WRONG]: "missed",
      [UNCOUNTED]: image.truth.state[cell] === 2 ? "a region of many cells: not counted" : "covered by other true cells: not counted",
    }[judging ? becameOfTruth(image, state.run, by, cell) : 0];
    return `truth: ${classes[image.truth.classes[cell]]}, ${shown.truth[cell].area} px${what && `\n${what}`}`;
  }

  /** The smallest true and found cell at a point of the canvas, of those that are shown. */
  function cellsAt(x, y) {
    const px = (x - view.x) / view.scale, py = (y - view.y) / view.scale;
    const image = images[shown.image];
    const { n, by } = judge(image, state.run, state.threshold);
    const { T, P, H, M, F, N, X } = state.layers;
    const layerOf = (became) => ({ [HIT]: H, [MISNAMED]: N })[became];
    function smallest(cells, count, isShown) {
      let best = -1;
      for (let c = 0; c < count; c++) {
        const { box, path, area } = cells[c];
        if (px < box[0] || px > box[2] || py < box[1] || py > box[3] || (best >= 0 && cells[best].area <= area)) continue;
        if (isShown(c) && probe.isPointInPath(path, px, py, "evenodd")) best = c;
      }
      return best;
    }
    const truth = smallest(shown.truth, shown.truth.length, (c) => {
      const became = judging ? becameOfTruth(image, state.run, by, c) : 0;
      return state.chosen.has(image.truth.classes[c]) &&
        (T || (became === WRONG ? M : layerOf(became)) || (X && image.oddities?.has(c)));
    });
    const found = smallest(shown.runs[state.run] || [], n, (c) => {
      const became = judging ? becameOfFound(image, state.run, c) : 0;
      const match = image.runs[state.run].match[c];
      const isChosen = state.chosen.has(image.runs[state.run].classes[c]) ||
        (became === MISNAMED && state.chosen.has(image.truth.classes[match]));
      return isChosen && (P || (became === WRONG ? F : layerOf(became)));
    });
    return { truth, found };
  }

  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = !text;
    tip.style.left = `${Math.max(0, Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 14, stage.clientHeight - tip.offsetHeight - 4))}px`;
  }

  function pointAt(x, y) {
    if (!shown) return "";
    const { truth, found } = cellsAt(x, y);
    const text = [truth >= 0 && aboutTruth(truth), found >= 0 && aboutFound(found)].filter(Boolean).join("\n");
    showTip(text, x, y);
    return text;
  }

  /** Whether a cell has no pixel, so that there is no place to go to. */
  const isEmpty = ({ box }) => !Number.isFinite(box[0]);

  /** Go close to a cell and say what it is. */
  function choose(side, cell) {
    state.picked = { side, cell };
    const target = pickedCell();
    if (!target || isEmpty(target)) return;
    const [x0, y0, x1, y1] = target.box;
    const room = Math.min(stage.clientWidth, stage.clientHeight);
    const scale = Math.min(24, Math.max(view.scale, room / 5 / Math.max(x1 - x0, y1 - y0)));
    move(stage.clientWidth / 2 - ((x0 + x1) / 2) * scale - view.x, stage.clientHeight / 2 - ((y0 + y1) / 2) * scale - view.y, scale);
    const text = side === "truth" ? aboutTruth(cell) : aboutFound(cell);
    showTip(text, x1 * scale + view.x - 8, y1 * scale + view.y - 8);
    byId("told").textContent = text;
  }

  /** The cells to look at one after the other: mistakes, odd cells or unsure ones. */
  function worstCells() {
    const image = images[shown.image];
    if (!page.runs.length) return [...image.oddities.keys()].map((cell) => ({ side: "truth", cell }));
    const found = image.runs[state.run];
    const { n, by } = judge(image, state.run, state.threshold);
    const kept = Array.from({ length: n }, (_, cell) => cell).filter((cell) => state.chosen.has(found.classes[cell]));
    if (!judging) return kept.filter((cell) => !isEmpty(shown.runs[state.run][cell])).reverse().map((cell) => ({ side: "found", cell }));
    const wrong = kept.filter((cell) => [MISNAMED, WRONG].includes(becameOfFound(image, state.run, cell)));
    const missed = [...shown.truth.keys()]
      .filter((cell) => state.chosen.has(image.truth.classes[cell]) && becameOfTruth(image, state.run, by, cell) === WRONG)
      .sort((a, b) => shown.truth[b].area - shown.truth[a].area);
    return [...wrong.map((cell) => ({ side: "found", cell })), ...missed.map((cell) => ({ side: "truth", cell }))];
  }

  function stepCell(by) {
    const cells = worstCells();
    if (!cells.length) return;
    const at = cells.findIndex(({ side, cell }) => side === state.picked?.side && cell === state.picked?.cell);
    const next = at < 0 ? (by > 0 ? 0 : cells.length - 1) : (at + by + cells.length) % cells.length;
    choose(cells[next].side, cells[next].cell);
  }

  // ---- The list, and the tables of all images -------------------------------------

  const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

  function summary(image) {
    const told = brief(image);
    if (!page.runs.length) return `${plural(told.true, "cell")}${image.odd.length ? `, ${image.odd.length} odd` : ""}`;
    if (!judging) return `${plural(told.found, "cell")}${told.found ? `, mean score ${number(told.sure)}` : ""}`;
    const f1 = (run) => number(Math.min(1, brief(image, run).f1));
    const quality = page.runs.length > 1 ? `F1 A ${f1(0)}, B ${f1(1)}` : `F1 ${f1(0)}`;
    return `${quality}\n${told.missed}\u00a0missed, ${told.falseAlarms}\u00a0false, ${told.misnamed}\u00a0misnamed`;
  }

  function tell() {
    if (!shown) return;
    const image = images[shown.image];
    const told = brief(image);
    byId("name").textContent = image.name;
    const cells = judging ? `${told.true} true, ${told.found} found: ${told.hits} hits; ` : "";
    const size = `${image.size[1]} × ${image.size[0]} px${image.reduced > 1 ? `, shown ${image.reduced} times smaller` : ""}`;
    byId("told").textContent = `${cells}${summary(image).replace("\n", ", ")} · ${size}`;
    canvas.setAttribute("aria-label", `Image ${image.name}`);
  }

  // [key, what the user reads, what an image is sorted by: the least first]
  const SORTS = [
    ...(judging && page.runs.length > 1 ? [["change", "B below A first", (i) => brief(i, 1).f1 - brief(i, 0).f1]] : []),
    ...(judging ? [
      ["f1", "worst F1 first", (i) => brief(i).f1],
      ["pq", "worst PQ first", (i) => brief(i).pq],
      ["missed", "most missed first", (i) => -brief(i).missed],
      ["false", "most false alarms first", (i) => -brief(i).falseAlarms],
      ["misnamed", "most misnamed first", (i) => -brief(i).misnamed],
    ] : []),
    ...(page.runs.length ? [] : [["odd", "odd cells first", (i) => -i.odd.length]]),
    ...(page.runs.length && !judging ? [["sure", "least sure first", (i) => brief(i).sure]] : []),
    ["cells", "most cells first", (i) => -(brief(i).true || brief(i).found)],
    ["name", "by name", (i) => i.name],
  ];

  const ordered = () => [...byId("list").querySelectorAll("li:not([hidden]) > button")].map((button) => Number(button.value));

  /** Sort the list anew, and leave out images without any cell of the chosen classes. */
  function sort() {
    const [, , of] = SORTS.find(([key]) => key === state.sort);
    const keys = images.map(of);
    const compare = (a, b) => (keys[a.at] < keys[b.at] ? -1 : keys[a.at] > keys[b.at] ? 1 : a.at - b.at);
    const focused = document.activeElement;
    byId("list").append(...[...images].sort(compare).map((image) => image.button.parentElement));
    const all = state.chosen.size === classes.length;
    for (const image of images) {
      const told = brief(image);
      image.button.parentElement.hidden = !all && !(told.true + told.found + told.misnamed);
    }
    if (byId("list").contains(focused)) focused.focus();
  }

  function relabel() {
    for (const image of images) image.button.querySelector("span").textContent = summary(image);
    tell();
    if (page.runs.length) fillTables();
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
    const sums = images.reduce((all, image) => addTo(all, image, state.run, state.threshold), emptyTally());
    if (!judging) {
      const rows = classes.map((name, k) => [name, sums.found[k]]);
      fillTable(byId("table"), "Found cells", ["class", "found"], [...rows, ["any class", sum(sums.found)]]);
      return;
    }
    const row = (name, truths, found, hits, wrong, iou) => [
      name, truths, found, hits, truths - hits, wrong,
      number(truths ? hits / Math.max(1, hits + wrong) : NaN, 3), number(hits / truths, 3),
      number(truths ? (2 * hits) / (hits + truths + wrong) : NaN, 3),
      number(truths ? iou / (hits + (truths - hits + wrong) / 2) : NaN, 3),
    ];
    const rows = classes.map((name, k) => row(name, sums.true[k], sums.found[k], sums.hits[k], sums.falseAlarms[k], sums.iou[k]));
    rows.push(row("any class", sum(sums.true), sum(sums.found), sums.anyHits, sums.anyFalse, sums.anyIou));
    const run = page.runs.length > 1 ? ` of run ${"AB"[state.run]}` : "";
    fillTable(byId("table"), `Cells${run} of all images, score ${number(state.threshold)} or more. A misnamed cell is a miss of the one class and a false alarm of the other.`,
      ["class", "true", "found", "hits", "misses", "false alarms", "precision", "recall", "F1", "pooled PQ"], rows);
    const share = sums.matrix.map((line) => sum(line) || 1);
    fillTable(byId("confusion"), "Cells by true class (rows) and given class (columns)", ["", ...classes, "missed"],
      sums.matrix.map((line, a) => [classes[a] ?? "nothing", ...[...line].map((value, b) => (a + b === 2 * classes.length ? "" : value))]),
      (a, b) => 0.6 * sums.matrix[a][b] / share[a]);
  }

  // ---- Controls -------------------------------------------------------------------

  const swatch = (colour) => {
    const patch = make("span", { className: "swatch" });
    patch.style.background = colour;
    return patch;
  };

  /** A small picture of a layer's line or pattern. */
  function sample({ key, line, colour }) {
    const small = make("canvas", { className: "swatch wide", width: 44, height: 28 });
    small.setAttribute("aria-hidden", "true");
    const pen = small.getContext("2d");
    pen.fillStyle = "#8c6f95"; // about the colour of tissue
    pen.fillRect(0, 0, 44, 28);
    if (colour) {
      pen.fillStyle = pen.createPattern(tile(key, colour, 2), "repeat");
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
    if (!state.chosen.delete(k)) state.chosen.add(k);
    press(byId(`class-${k}`), state.chosen.has(k));
    tip.hidden = true;
    sort();
    relabel();
  }

  function showRun(run) {
    state.run = run;
    state.picked = null;
    tip.hidden = true;
    page.runs.forEach((_, r) => press(byId(`run-${r}`), r === run));
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
  if (byId("runs")) {
    page.runs.forEach((name, r) => {
      const button = make("button", { id: `run-${r}`, title: name, onclick: () => showRun(r) }, `${"AB"[r]} ${name.split(/[/\\]/).slice(-2).join("/")}`);
      press(button, r === state.run);
      byId("runs").append(button);
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
    let waits = false;
    slider.oninput = () => {
      state.threshold = slider.valueAsNumber;
      byId("score-shown").textContent = number(state.threshold);
      tip.hidden = true;
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => {
        waits = false;
        relabel();
      });
    };
    slider.onchange = sort; // not while it moves: the list would jump about
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
      const { image, run, cell } = button.dataset;
      if (Number(run) >= 0) state.run = Number(run);
      page.runs.length > 1 && showRun(state.run);
      open(Number(image), { side: Number(run) < 0 ? "truth" : "found", cell: Number(cell) });
      byId("viewer").scrollIntoView({ block: "nearest" });
      canvas.focus({ preventScroll: true });
    };
  }

  const KEYS = [
    ["← →", "previous, next image"],
    [", .", page.runs.length ? (judging ? "previous, next mistake in the image" : "previous, next cell, least sure first") : "previous, next odd cell in the image"],
    ["1 – 9", "show or hide a class"],
    ...LAYERS.map(({ key, name, about }) => [key, `${name} (${about})`]),
    ...(page.runs.length > 1 ? [["R", "the other run"]] : []),
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
    else if (key.toUpperCase() === "R" && page.runs.length > 1) act = () => showRun(1 - state.run);
    if (!act) return;
    event.preventDefault();
    act();
  });

  // ---- Pointers: one drags, two pinch, none pressed points ------------------------

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
    if (!before) {
      pointAt(x, y);
      return;
    }
    if (!shown) return;
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
      if (type === "pointerup" && travelled <= 3) byId("told").textContent = pointAt(...place(event)) || byId("told").textContent;
    });
  }
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => shown && zoom(2, ...place(event)));
  canvas.addEventListener("wheel", (event) => {
    // The page must stay scrollable: the wheel is the image's after a click into it alone.
    if (!shown || !(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...place(event));
  }, { passive: false });
  new ResizeObserver(() => {
    if (shown && view.fitted) fit();
    else redraw();
  }).observe(stage);

  sort();
  relabel();
  step(-Infinity);
})();
