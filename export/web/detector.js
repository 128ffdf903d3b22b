// The model of the bundle as a function from a picture to the objects in it.

import * as litert from "@litertjs/core";

import { withSignatures } from "./flatbuffer.js";
import { pad, resize, resizedSize, restore } from "./geometry.js";

const FORMAT = 1;
const WASM = new URL("./litertjs/core/wasm/", import.meta.url).href;
const STAGES = ["trunk", "propose", "box", "detect", "mask"];
/** Convolutions and matrices, for an accelerator; the geometry of the others always runs in wasm. */
const ACCELERATED = ["trunk", "box", "mask"];

/** What the user can put right; the message says what it is. */
export class DetectorError extends Error {}

/** Whether this browser has a graphics card to compute on. */
export async function hasWebGpu() {
  return Boolean(await navigator.gpu?.requestAdapter());
}

export class Detector {
  /** Compiled models by stage. */
  #models;

  /**
   * @param {URL} bundle folder with model.json and model.tflite.
   * @param {"wasm" | "webgpu"} accelerator of the stages ACCELERATED, as far as it can run them.
   */
  static async open(bundle, accelerator) {
    const info = JSON.parse(new TextDecoder().decode(await download(new URL("model.json", bundle))));
    if (info.format !== FORMAT) {
      throw new DetectorError(
        `model.json: expected format ${FORMAT}, got ${info.format}; take the page that was exported with this model`,
      );
    }
    const model = await download(new URL("model.tflite", bundle));
    if (litert.getGlobalLiteRtPromise()) litert.unloadLiteRt();
    await litert.loadLiteRt(WASM);
    const compile = (names, options) => litert.loadAndCompile(withSignatures(model, names), options);
    const stages = STAGES.filter((stage) => stage in info.signatures);
    const graphics = accelerator === "webgpu" ? await onGraphicsCard(stages, compile) : {};
    const rest = await compile(stages.filter((stage) => !(stage in graphics)), { accelerator: "wasm" });
    return new Detector(info, Object.fromEntries(stages.map((stage) => [stage, graphics[stage] ?? rest])));
  }

  constructor(info, models) {
    this.info = info;
    this.#models = models;
  }

  /** Where each stage runs. */
  get accelerators() {
    return Object.fromEntries(Object.entries(this.#models).map(([stage, { options }]) => [stage, options.accelerator]));
  }

  get hasMasks() {
    return "mask" in this.info.signatures;
  }

  /**
   * Find the objects of a picture of geometry.js.
   *
   * @returns {Promise<{objects: Object[], times: Object}>} objects, best first: {box, classNumber, name, score, region}, box in
   *     pixels of the picture, region what `addMasks` makes the mask of; times: milliseconds of each stage.
   */
  async detect(picture) {
    const { preprocessing: how, image_size: inputSize } = this.info;
    const times = {};
    const { picture: input, window, size } = timed(times, "resize", () => {
      const fitted = resizedSize(picture.height, picture.width, how, inputSize);
      return { ...pad(resize(picture, fitted, how), inputSize, how.placement), size: fitted };
    });
    const tensors = {
      image: new litert.Tensor(input.pixels, [1, ...inputSize, 3]),
      image_size: new litert.Tensor(Int32Array.from(size), [1, 2]),
    };
    try {
      for (const stage of ["trunk", "propose", "box", "detect"]) {
        // Lets the page answer between the stages.
        await new Promise((resolve) => setTimeout(resolve));
        await this.#run(stage, tensors, times);
      }
      return { objects: await this.#objects(tensors, window, [picture.height, picture.width]), times };
    } finally {
      for (const tensor of Object.values(tensors)) tensor.delete();
    }
  }

  /** Give `mask`, 28 x 28 probabilities, to those objects that have none; as many calls of the mask head as they take. */
  async addMasks(objects, times) {
    const without = this.hasMasks ? objects.filter((object) => !object.mask) : [];
    const { mask_rows: step } = this.info;
    for (let start = 0; start < without.length; start += step) {
      const part = without.slice(start, start + step);
      const { shape } = this.info.signatures.mask.inputs.regions;
      const [regions, classes] = [new Float32Array(shape.reduce((a, b) => a * b)), new Int32Array(step)];
      for (let row = 0; row < step; row++) {
        // A call with room left repeats its rows.
        const object = part[row % part.length];
        regions.set(object.region, row * object.region.length);
        classes[row] = object.classNumber;
      }
      const tensors = { regions: new litert.Tensor(regions, shape), classes: new litert.Tensor(classes, [step]) };
      try {
        await this.#run("mask", tensors, times);
        const masks = await tensors.masks.data();
        part.forEach((object, row) => {
          object.mask = masks.slice((row * masks.length) / step, ((row + 1) * masks.length) / step);
        });
      } finally {
        for (const tensor of Object.values(tensors)) tensor.delete();
      }
    }
  }

  close() {
    for (const model of new Set(Object.values(this.#models))) model.delete();
  }

  /** Run a signature on the tensors of its inputs' names, and add its outputs to them, in the memory of wasm. */
  async #run(stage, tensors, times) {
    const started = performance.now();
    const names = Object.keys(this.info.signatures[stage].inputs);
    const outputs = await this.#models[stage].run(stage, Object.fromEntries(names.map((name) => [name, tensors[name]])));
    for (const [name, tensor] of Object.entries(outputs)) {
      tensors[name] = tensor.accelerator === "wasm" ? tensor : await tensor.moveTo("wasm");
    }
    times[stage] = (times[stage] ?? 0) + performance.now() - started;
  }

  async #objects(tensors, window, size) {
    const [count] = await tensors.num_detections.data();
    const [boxes, classes, scores] = await Promise.all(
      ["boxes", "classes", "scores"].map((name) => tensors[`detection_${name}`].data()),
    );
    const regions = this.hasMasks ? await tensors.mask_regions.data() : new Float32Array();
    const length = regions.length / scores.length;
    const how = { inclusive: this.info.box_ends === "inclusive", clip: this.info.clip_to === "image" };
    const objects = [];
    for (let row = 0; row < count; row++) {
      const { box, hasArea } = restore(Array.from(boxes.subarray(row * 4, row * 4 + 4)), window, size, how);
      if (!hasArea) continue;
      const { name } = this.info.categories[classes[row] - 1];
      const region = regions.slice(row * length, (row + 1) * length);
      objects.push({ box, classNumber: classes[row], name, score: scores[row], region });
    }
    return objects;
  }
}

/**
 * Compiled models of those stages that run on the graphics card as a whole: one that comes back for single operations is slow, and
 * waits in a way (JSPI) that not every browser has.
 */
async function onGraphicsCard(stages, compile) {
  // In float32, as the numbers of the other runtimes.
  const options = { accelerator: "webgpu", gpuOptions: { precision: "fp32" } };
  const models = {};
  for (const stage of stages.filter((name) => ACCELERATED.includes(name))) {
    try {
      const model = await compile([stage], options);
      if (model.isFullyAccelerated) models[stage] = model;
      else model.delete();
    } catch (error) {
      console.warn(`${stage} stays in wasm:`, error);
    }
  }
  if (!Object.keys(models).length) throw new DetectorError("The graphics card can run no part of this model.");
  return models;
}

async function download(url) {
  const file = url.pathname.split("/").pop();
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new DetectorError(`${file} cannot be fetched: ${error.message}; does the server still run?`);
  }
  if (!response.ok) {
    throw new DetectorError(
      `${file}: the server answers ${response.status}; serve the folder of the bundle, and open /web/ there`,
    );
  }
  return new Uint8Array(await response.arrayBuffer());
}

function timed(times, stage, work) {
  const started = performance.now();
  const result = work();
  times[stage] = performance.now() - started;
  return result;
}
