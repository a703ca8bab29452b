// Pictures and outlines: of small images in the page itself, of slides in tiles beside it.

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const VALUE = new Uint8Array(128);
[...DIGITS].forEach((letter, value) => { VALUE[letter.charCodeAt(0)] = value; });

/** Undo `encode_outlines` of cellseg/look/gallery.py: {id, path, box} of each cell. */
function decodeOutlines({ ids, outlines: text }) {
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
    for (let rings = next(); rings > 0; rings--) {
      const steps = next();
      let x = (x0 += next()), y = (y0 += next());
      path.moveTo(x, y);
      for (let step = 0; step < steps; step++) {
        box[0] = Math.min(box[0], x);
        box[1] = Math.min(box[1], y);
        const move = next();
        if (step % 2) y += move;
        else x += move;
        box[2] = Math.max(box[2], x);
        box[3] = Math.max(box[3], y);
        path.lineTo(x, y);
      }
      path.closePath();
    }
    cells.push({ id: ids ? ids[cells.length] : cells.length, path, box });
  }
  return cells;
}

const wholeFile = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
});

/** Read what the page itself contains of an image. */
async function readBlock(at) {
  if (!byId(`image-${at}`)) await wholeFile;
  return JSON.parse(byId(`image-${at}`).textContent);
}

// A page that is opened from disk can't fetch a file, but it can load a script, which calls this.
const arriving = new Map();
window.cellsegTile = (name, content) => arriving.get(name)?.(content);

const readTile = (name) => new Promise((done, fail) => {
  const folder = page.tiles.split("/").map(encodeURIComponent).join("/");
  const script = make("script", { src: `${folder}/${name}.js` });
  arriving.set(name, done);
  script.onload = script.onerror = () => {
    arriving.delete(name);
    script.remove();
    fail(new Error(`${page.tiles}/${name}.js is missing; keep that folder beside the page`)); // unless it is done
  };
  document.head.append(script);
});

const CACHE = 256e6; // bytes of decoded pictures and outlines, about
const MAX_LOADING = 16;
const cache = new Map(); // name -> {value, cost, used}, the least recently used first
let clock = 0, loading = 0, cost = 0, arrived = 0; // clock: the number of the frame that is drawn

/**
 * Return {picture, gt, results} of a tile, which may have some of them, or null until it is loaded.
 * The name is a number for what the page has of that image, else that of a file.
 */
function tile(name) {
  const known = cache.get(name);
  if (known) {
    known.used = clock;
    cache.delete(name);
    cache.set(name, known);
    return known.value;
  }
  if (loading < MAX_LOADING) {
    loading++;
    const entry = { value: null, cost: 0, used: clock };
    cache.set(name, entry);
    loadTile(name, entry).catch((error) => {
      byId("status").textContent = `can't be shown: ${error.message}`;
      if (typeof name === "string") entry.value = { gt: [], results: [] };
    }).finally(() => {
      loading--;
      if (!loading || !arrived) arrived = setTimeout(() => { arrived = 0; redraw(); }, loading ? 60 : 0);
    });
  }
  return null;
}

async function loadTile(name, entry) {
  const raw = await (typeof name === "number" ? readBlock(name) : readTile(name));
  const value = {};
  if (raw.picture) {
    value.picture = new Image();
    value.picture.src = raw.picture;
    await value.picture.decode();
    entry.cost += value.picture.width * value.picture.height * 4;
  }
  if (raw.cells) {
    [value.gt, ...value.results] = raw.cells.map(decodeOutlines);
    entry.cost += 2000 * (value.gt.length + sum(value.results.map((cells) => cells.length)));
  }
  entry.value = value;
  cost += entry.cost;
  for (const [other, { value: isLoaded, cost: freed, used }] of cache) {
    if (cost <= CACHE || used === clock) break;
    if (!isLoaded) continue;
    cache.delete(other);
    cost -= freed;
  }
}

/** Return the numbers of the tiles that a box reaches into: [column, row], at `side` px each. */
function* tilesIn([x0, y0, x1, y1], side) {
  for (let row = Math.floor(y0 / side); row * side < y1; row++) {
    for (let column = Math.floor(x0 / side); column * side < x1; column++) yield [column, row];
  }
}
