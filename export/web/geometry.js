// Sizes, pixels, boxes and masks: what detect.py of the bundle does with numpy and Pillow, with the same numbers.
//
// A picture is {height, width, pixels}, pixels a Uint8Array of RGB rows. A size is [height, width]. A box is [y1, x1, y2, x2].

const { fround } = Math;
const FIXED_POINT_BITS = 22;

/** Pixels of an ImageData without its alpha. */
export function pictureOf(imageData) {
  const { height, width, data } = imageData;
  const pixels = new Uint8Array(height * width * 3);
  for (let from = 0, to = 0; to < pixels.length; from += 4) {
    pixels[to++] = data[from];
    pixels[to++] = data[from + 1];
    pixels[to++] = data[from + 2];
  }
  return { height, width, pixels };
}

/** Size that a picture is resized to: by `preprocessing` of model.json, and to fit the input. */
export function resizedSize(height, width, how, inputSize) {
  const shortest = Math.min(height, width);
  const longest = Math.max(height, width);
  let scale = (how.enlarge_only ? Math.max(shortest, how.min_size) : how.min_size) / shortest;
  let edges;
  if (how.resize_rounding === "half_up") {
    const back = scale * longest > how.max_size ? how.max_size / (scale * longest) : 1;
    edges = [height, width].map((edge) => Math.floor(scale * edge * back + 0.5));
  } else if (how.resize_rounding === "floor") {
    edges = [height, width].map((edge) => Math.floor(edge * Math.min(scale, how.max_size / longest)));
  } else {
    scale = roundHalfEven(longest * scale) > how.max_size ? how.max_size / longest : scale;
    edges = [height, width].map((edge) => roundHalfEven(edge * scale));
  }
  edges = edges.map((edge) => Math.max(1, edge));
  const shrink = Math.min(1, inputSize[0] / edges[0], inputSize[1] / edges[1]);
  return edges.map((edge) => Math.max(1, Math.floor(edge * shrink + 0.5)));
}

/** Bilinear: Pillow's with antialiasing, else between the four nearest pixels, by way of whole levels if `quantize`. */
export function resize(picture, [height, width], { antialias, quantize }) {
  const { height: oldHeight, width: oldWidth, pixels } = picture;
  if (oldHeight === height && oldWidth === width) return picture;
  if (antialias) {
    // Pillow leaves an axis alone whose length stays.
    const across = oldWidth === width ? pixels : filtered(pixels, oldHeight, oldWidth, 3, width);
    return { height, width, pixels: oldHeight === height ? across : filtered(across, 1, oldHeight, width * 3, height) };
  }
  const across = interpolated(pixels, oldHeight, oldWidth, 3, width);
  const down = interpolated(quantize ? wholeLevels(across) : across, 1, oldHeight, width * 3, height);
  return { height, width, pixels: wholeLevels(down) };
}

/** Zeros around a picture up to a size: the padded picture, and the box of the old one therein. */
export function pad(picture, size, placement) {
  const { height, width, pixels } = picture;
  const [top, left] = placement === "centre" ? [(size[0] - height) >> 1, (size[1] - width) >> 1] : [0, 0];
  const padded = new Uint8Array(size[0] * size[1] * 3);
  for (let row = 0; row < height; row++) {
    padded.set(pixels.subarray(row * width * 3, (row + 1) * width * 3), ((top + row) * size[1] + left) * 3);
  }
  return { picture: { height: size[0], width: size[1], pixels: padded }, window: [top, left, top + height, left + width] };
}

/**
 * A box of the input in pixels of the picture, cut there if `clip`, and whether it has area there.
 *
 * `inclusive` scales from first pixel to last pixel and not from edge to edge. In float32, as the model computes.
 */
export function restore(box, window, size, { inclusive, clip }) {
  const last = inclusive ? 1 : 0;
  const moved = box.map((side, index) => {
    const axis = index % 2;
    const end = index < 2 ? 0 : last;
    const before = Math.max(window[axis + 2] - window[axis] - last, 1);
    const after = Math.max(size[axis] - last, 1);
    const inWindow = fround(fround(side - end) - window[axis]);
    return fround(fround(fround(inWindow * after) / before) + end);
  });
  const inside = moved.map((side, index) => Math.min(Math.max(side, 0), size[index % 2]));
  return { box: clip ? inside : moved, hasArea: inside[2] > inside[0] && inside[3] > inside[1] };
}

/**
 * Lay a mask over its box: {top, left, height, width, pixels} of the part of the picture in its frame, pixels 0 or 1.
 *
 * A pixel is set where the probability, interpolated at its centre with zeros around the mask, reaches 0.5, or with "expanded"
 * exceeds it. The frame is the box ("centred"), the box of rounded corners ("stretched"), or what is left when box and mask get a
 * border of one cell, the corners are cut to whole pixels, and the last pixel counts as inside ("expanded").
 */
export function pasteRegion(mask, box, size, paste) {
  const cells = Math.sqrt(mask.length);
  const [low, high] = frame(box, cells, paste);
  const start = [0, 1].map((axis) => clamp(Math.ceil(low[axis] - 0.5), 0, size[axis]));
  const stop = [0, 1].map((axis) => clamp(Math.floor(high[axis] - 0.5) + 1, start[axis], size[axis]));
  const [height, width] = [stop[0] - start[0], stop[1] - start[1]];
  const pixels = new Uint8Array(height * width);
  if (!pixels.length) return { top: start[0], left: start[1], height, width, pixels };
  const [rows, columns] = [0, 1].map((axis) => neighbours(start[axis], stop[axis], low[axis], high[axis], cells));
  const line = new Float64Array(cells);
  for (let y = 0; y < height; y++) {
    const [above, aboveWeight, below, belowWeight] = rows[y];
    for (let x = 0; x < cells; x++) line[x] = aboveWeight * mask[above * cells + x] + belowWeight * mask[below * cells + x];
    for (let x = 0; x < width; x++) {
      const [before, beforeWeight, after, afterWeight] = columns[x];
      const probability = fround(beforeWeight * line[before] + afterWeight * line[after]);
      pixels[y * width + x] = paste === "expanded" ? probability > 0.5 : probability >= 0.5;
    }
  }
  return { top: start[0], left: start[1], height, width, pixels };
}

/** First and last corner (y, x) of what a mask fills; without area where the box has none. */
function frame(box, cells, paste) {
  let first = [box[0], box[1]].map(fround);
  let last = [box[2], box[3]].map(fround);
  if (!(last[0] > first[0] && last[1] > first[1])) return [[0, 0], [0, 0]];
  if (paste === "stretched") return [first.map(roundHalfEven), last.map(roundHalfEven)];
  if (paste === "expanded") {
    // In float32, as the original computes: a corner close to a whole number is cut to the same one.
    const more = fround((cells + 2) / cells);
    const half = [0, 1].map((axis) => fround(fround(fround(last[axis] - first[axis]) * 0.5) * more));
    const centre = [0, 1].map((axis) => fround(fround(last[axis] + first[axis]) * 0.5));
    first = [0, 1].map((axis) => Math.trunc(fround(centre[axis] - half[axis])));
    last = [0, 1].map((axis) => Math.trunc(fround(centre[axis] + half[axis])) + 1);
    const border = [0, 1].map((axis) => (last[axis] - first[axis]) / (cells + 2));
    return [first.map((side, axis) => side + border[axis]), last.map((side, axis) => side - border[axis])];
  }
  return [first, last];
}

/** [cell, weight, next cell, weight] at each pixel centre; outside the mask a weight is 0. */
function neighbours(start, stop, low, high, cells) {
  return Array.from({ length: stop - start }, (_, index) => {
    const position = ((start + index + 0.5 - low) / (high - low)) * cells - 0.5;
    const cell = Math.floor(position);
    const weight = (at) => (at < 0 || at >= cells ? 0 : fround(Math.max(1 - Math.abs(position - at), 0)));
    return [clamp(cell, 0, cells - 1), weight(cell), clamp(cell + 1, 0, cells - 1), weight(cell + 1)];
  });
}

/** Resize the middle axis of [outer, length, inner] to `count` with a triangle as wide as the step, in fixed point as Pillow. */
function filtered(values, outer, length, inner, count) {
  const scale = length / count;
  const reach = Math.max(scale, 1);
  const taps = Array.from({ length: count }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const past = Math.min(length, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: past - first }, (_, tap) =>
      Math.max(0, 1 - Math.abs((tap + first - centre + 0.5) * (1 / reach))),
    );
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: Int32Array.from(weights, (weight) => (weight / sum) * 2 ** FIXED_POINT_BITS + 0.5) };
  });
  const result = new Uint8Array(outer * count * inner);
  const sums = new Int32Array(inner);
  for (let block = 0, to = 0; block < outer; block++) {
    for (const { first, weights } of taps) {
      sums.fill(1 << (FIXED_POINT_BITS - 1));
      let from = (block * length + first) * inner;
      for (const weight of weights) for (let each = 0; each < inner; each++) sums[each] += values[from++] * weight;
      for (let each = 0; each < inner; each++) result[to++] = Math.min(sums[each] >> FIXED_POINT_BITS, 255);
    }
  }
  return result;
}

/** Resize the middle axis of [outer, length, inner] to `count`, between the two nearest, in float32 as TensorFlow. */
function interpolated(values, outer, length, inner, count) {
  const scale = fround(length / count);
  const result = new Float32Array(outer * count * inner);
  for (let block = 0, to = 0; block < outer; block++) {
    for (let index = 0; index < count; index++) {
      const position = fround(fround(fround(index + 0.5) * scale) - 0.5);
      const below = Math.floor(position);
      const part = fround(position - below);
      const [first, second] = [below, below + 1].map((at) => (block * length + clamp(at, 0, length - 1)) * inner);
      for (let each = 0; each < inner; each++) {
        const value = values[first + each];
        result[to++] = fround(value + fround(fround(values[second + each] - value) * part));
      }
    }
  }
  return result;
}

function wholeLevels(values) {
  return Uint8Array.from(values, (value) => Math.floor(fround(value + 0.5)));
}

function roundHalfEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
