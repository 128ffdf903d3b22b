// Masks, boxes, names and scores on a canvas, in the manner of detect.py of the bundle.

import { pasteRegion } from "./geometry.js";

const SMALLEST_VIEW = 640;
const LARGEST_VIEW = 2048;
const MASK_OPACITY = 0.42;

/** How much larger than a picture its drawing is: a small one is enlarged by a whole factor, a large one shrunk. */
export function viewScale(size) {
  const longest = Math.max(...size);
  return longest < SMALLEST_VIEW ? Math.ceil(SMALLEST_VIEW / longest) : Math.min(1, LARGEST_VIEW / longest);
}

/** Red, green and blue of the object with this number: the hue turns by the golden ratio, and the lightness takes turns. */
export function colour(number) {
  const hue = (0.02 + number * 0.61803398875) % 1;
  const lightness = [0.55, 0.45, 0.65][number % 3];
  const spread = 0.95 * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((turn) => {
    const place = (turn + hue * 12) % 12;
    return Math.round(255 * (lightness - spread * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
  });
}

/**
 * Draw objects of detector.js over a picture.
 *
 * @param {HTMLCanvasElement} canvas gets the size of the view.
 * @param {CanvasImageSource} source the picture.
 * @param {number[]} size [height, width] of the picture; boxes are in its pixels.
 * @param {number[]} room [height, width] that the page has for the canvas: however large the view, lines and labels are readable.
 */
export function draw(canvas, source, size, objects, paste, room) {
  const scale = viewScale(size);
  const view = size.map((side) => Math.max(1, Math.round(side * scale)));
  [canvas.height, canvas.width] = view;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, view[1], view[0]);
  const shrunk = Math.max(1, view[0] / room[0], view[1] / room[1]);
  const line = Math.round(1.6 * shrunk);
  const inView = (box) => box.map((side) => side * scale);
  const drawn = objects.map((object, number) => ({ ...object, box: inView(object.box), rgb: colour(number) }));
  const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  // Large ones first, so that small ones lie on top.
  const order = [...drawn].sort((one, other) => area(other) - area(one));
  for (const { mask, box, rgb } of order) if (mask) paintMask(pen, pasteRegion(mask, box, view, paste), rgb, line);
  pen.lineWidth = line;
  for (const { box, rgb } of order) {
    pen.strokeStyle = css(rgb);
    const [top, left, bottom, right] = box;
    pen.strokeRect(left + line / 2, top + line / 2, Math.max(right - left - line, 1), Math.max(bottom - top - line, 1));
  }
  // The best ones last, so that their labels are whole.
  for (const object of [...drawn].reverse()) label(pen, object, view, Math.round(17 * shrunk));
}

function paintMask(pen, { top, left, height, width, pixels }, rgb, line) {
  if (!pixels.length) return;
  const paint = new ImageData(width, height);
  const isSet = (y, x) => y >= 0 && y < height && x >= 0 && x < width && pixels[y * width + x];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!pixels[at]) continue;
      const isInner = isSet(y - line, x) && isSet(y + line, x) && isSet(y, x - line) && isSet(y, x + line);
      paint.data.set([...rgb, isInner ? 255 * MASK_OPACITY : 255], at * 4);
    }
  }
  const sheet = new OffscreenCanvas(width, height);
  sheet.getContext("2d").putImageData(paint, 0, 0);
  pen.drawImage(sheet, left, top);
}

function label(pen, { box, name, score, rgb }, view, height) {
  const text = `${name} ${score.toFixed(2)}`;
  pen.font = `${Math.round(height * 0.75)}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const width = pen.measureText(text).width + height * 0.5;
  const x = Math.max(0, Math.min(box[1], view[1] - width));
  const y = Math.max(0, Math.min(box[0] - height, view[0] - height));
  pen.fillStyle = css(rgb);
  pen.fillRect(x, y, width, height);
  pen.fillStyle = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "black" : "white";
  pen.fillText(text, x + height * 0.25, y + height / 2);
}

export function css(rgb) {
  return `rgb(${rgb.join(" ")})`;
}
