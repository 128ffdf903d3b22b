// The page: pictures come in, detector.js finds, drawing.js shows. For tests, ?image=URL loads a picture, ?accelerator=webgpu
// chooses where to run, and window.lastResult holds what was found.

import { Detector, DetectorError, hasWebGpu } from "./detector.js";
import { colour, css, draw } from "./drawing.js";
import { pictureOf } from "./geometry.js";

const BUNDLE = new URL("../", import.meta.url);
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
/** Of the window's height, as style.css has it. */
const LARGEST_SHARE = 0.75;
const parameters = new URLSearchParams(location.search);

let detector = null;
/** The picture on show: {source, size, objects, times}. */
let shown = null;
let stream = null;
/** One thing after another: the model has one memory. */
let work = Promise.resolve();

function say(text, isFault = false) {
  at.status.textContent = text;
  at.status.classList.toggle("fault", isFault);
}

/** Run after what is under way; a fault is told on the page. */
function queue(task) {
  work = work.then(task).catch((error) => {
    console.error(error);
    // Wasm also throws what is no Error.
    const message = error?.message ?? String(error);
    window.lastError = message;
    say(error instanceof DetectorError ? message : `This did not work: ${message}`, true);
  });
  return work;
}

async function open(accelerator) {
  say("Loading the model …");
  enable(false);
  stopCamera();
  const started = performance.now();
  detector?.close();
  detector = null;
  try {
    detector = await Detector.open(BUNDLE, accelerator);
  } finally {
    at.accelerator.disabled = false;
  }
  const { categories, image_size: size, precision } = detector.info;
  const names = categories.map(({ name }) => name);
  const many = names.length > 8 ? `${names.slice(0, 8).join(", ")} and ${names.length - 8} more` : names.join(", ");
  at.model.textContent = `Finds ${many}. Input ${size[0]} × ${size[1]}, ${precision}.`;
  at.accelerator.value = accelerator;
  enable(true);
  say(`Ready; the model took ${Math.round(performance.now() - started)} ms to load.`);
}

function enable(isReady) {
  for (const element of [at.file, at.camera, at.accelerator]) element.disabled = !isReady;
}

/** Find the objects of a picture and show them. */
async function detect(source, size) {
  const canvas = new OffscreenCanvas(size[1], size[0]);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(source, 0, 0);
  const picture = pictureOf(pen.getImageData(0, 0, size[1], size[0]));
  shown = { source: canvas, size, ...(await detector.detect(picture)) };
  await show();
}

/** Draw what reaches the threshold; masks are made when they are first needed. */
async function show() {
  const { source, size, objects, times } = shown;
  const threshold = Number(at.threshold.value);
  const visible = objects.filter(({ score }) => score >= threshold);
  await detector.addMasks(visible, times);
  const started = performance.now();
  draw(at.canvas, source, size, visible, detector.info.paste, [LARGEST_SHARE * innerHeight, at.stage.clientWidth]);
  times.draw = performance.now() - started;
  at.canvas.hidden = false;
  at.hint.hidden = true;
  list(visible, times);
  window.lastResult = {
    boxes: visible.map(({ box }) => box),
    classes: visible.map(({ classNumber }) => classNumber),
    scores: visible.map(({ score }) => score),
    names: visible.map(({ name }) => name),
    masks: visible.map(({ mask }) => (mask ? Array.from(mask) : null)),
    size,
    accelerators: detector.accelerators,
    times: { ...times },
  };
}

function list(objects, times) {
  at.count.textContent = objects.length === 1 ? "1 object" : `${objects.length} objects`;
  at.objects.replaceChildren(
    ...objects.map(({ name, score }, number) => {
      const item = element("li", element("span"), element("span", name), element("span", score.toFixed(2)));
      item.firstChild.style.background = css(colour(number));
      return item;
    }),
  );
  const sum = Object.values(times).reduce((total, time) => total + time, 0);
  const rows = [...Object.entries(times), ["together", sum]];
  at.times.replaceChildren(
    ...rows.map(([stage, time]) => element("tr", element("th", stage), element("td", time.toFixed(1)))),
  );
  at.results.hidden = false;
}

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

/** Read, find and show a picture file. */
async function openPicture(blob, name) {
  if (!detector) throw new DetectorError("There is no model to run.");
  stopCamera();
  say(`Looking at ${name} …`);
  let bitmap;
  try {
    // Turned as its EXIF says; colours as they are in the file, as other readers take them.
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new DetectorError(`${name} is not a picture that this browser can read.`);
  }
  await detect(bitmap, [bitmap.height, bitmap.width]);
  bitmap.close();
  say(`${name}: ${shown.size[1]} × ${shown.size[0]} pixels, ${whereItRuns()}.`);
}

function whereItRuns() {
  const graphics = Object.entries(detector.accelerators).filter(([, accelerator]) => accelerator === "webgpu");
  return graphics.length ? `${graphics.map(([stage]) => stage).join(", ")} on the graphics card` : "all on the processor";
}

async function fetchPicture(url) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new DetectorError(`${url} cannot be fetched: ${error.message}; the page reads from its own server only.`);
  }
  if (!response.ok) throw new DetectorError(`${url}: the server answers ${response.status}.`);
  await openPicture(await response.blob(), url);
}

async function startCamera() {
  if (!navigator.mediaDevices) {
    throw new DetectorError("The browser gives the camera to https pages and to localhost only.");
  }
  say("Waiting for the camera …");
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  } catch (error) {
    const reasons = { NotAllowedError: "it was not allowed", NotFoundError: "there is none", NotReadableError: "it is in use" };
    throw new DetectorError(`No camera: ${reasons[error.name] ?? error.message}.`);
  }
  at.camera.textContent = "Stop";
  at.camera.setAttribute("aria-pressed", "true");
  at.video.srcObject = stream;
  await at.video.play();
  queue(() => nextFrame(stream));
}

/** A frame, and the next one in line after whatever else waits. */
async function nextFrame(from) {
  if (stream !== from) return;
  const started = performance.now();
  try {
    await detect(at.video, [at.video.videoHeight, at.video.videoWidth]);
  } catch (error) {
    stopCamera();
    throw error;
  }
  if (stream !== from) return;
  say(`Camera: ${(1000 / (performance.now() - started)).toFixed(1)} frames a second, ${whereItRuns()}.`);
  requestAnimationFrame(() => queue(() => nextFrame(from)));
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  at.video.srcObject = null;
  at.camera.textContent = "Camera";
  at.camera.removeAttribute("aria-pressed");
  say("The camera is off.");
}

function takeFile(file) {
  if (file) queue(() => openPicture(file, file.name));
}

at.file.addEventListener("change", () => {
  takeFile(at.file.files[0]);
  // So that the same picture can be chosen again.
  at.file.value = "";
});
at.camera.addEventListener("click", () => (stream ? stopCamera() : queue(startCamera)));
at.accelerator.addEventListener("change", () => {
  const { value } = at.accelerator;
  queue(() => open(value));
});
at.threshold.addEventListener("input", () => {
  at["threshold-value"].value = Number(at.threshold.value).toFixed(2);
  if (shown && detector && !stream) queue(show);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at.stage.classList.add("target");
});
document.addEventListener("dragleave", () => at.stage.classList.remove("target"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at.stage.classList.remove("target");
  takeFile(event.dataTransfer.files[0]);
});

queue(async () => {
  if (await hasWebGpu()) at.accelerator.add(new Option("graphics card (WebGPU)", "webgpu"));
  const wanted = parameters.get("accelerator");
  const isThere = [...at.accelerator.options].some(({ value }) => value === wanted);
  if (wanted && !isThere) throw new DetectorError(`This browser has no accelerator ${wanted}.`);
  await open(wanted ?? "wasm");
  if (parameters.has("image")) await fetchPicture(parameters.get("image"));
});
