// Opens the page of a bundle in headless Chromium and prints what came of it as JSON.
//
//     node open_page.mjs '{"modules": FOLDER, "chromium": FILE, "url": URL, ...}'
//
// modules: has node_modules/playwright-core. screenshot, canvas: files. viewport: [width, height]. arguments: more for Chromium.
// script: what runs before the page's own.
// file: a picture to put into the file input. camera: how many frames to wait for. threshold: moves the slider afterwards.
// Printed: {result: window.lastResult, status, listed, frames, requests, refused, errors}.

import { writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

const PATIENCE = 120_000;
const wanted = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(wanted.modules, "any.js"))("playwright-core");
const browser = await chromium.launch({
  executablePath: wanted.chromium,
  args: ["--no-sandbox", "--disable-dev-shm-usage", ...(wanted.arguments ?? [])],
});
try {
  const [width, height] = wanted.viewport ?? [1000, 1100];
  const page = await browser.newPage({ viewport: { width, height } });
  const [requests, refused, errors] = [[], [], []];
  page.on("request", (request) => requests.push(request.url()));
  page.on("requestfailed", (request) => refused.push(request.url()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    if (message.text().includes("Content Security Policy")) errors.push(message.text());
  });
  const isSettled = (last) => window.lastError || (window.lastResult && window.lastResult !== last);
  const settled = (last) => page.waitForFunction(isSettled, last, { timeout: PATIENCE });
  if (wanted.script) await page.addInitScript(wanted.script);
  await page.goto(wanted.url);
  if (wanted.file) {
    await page.setInputFiles("#file", wanted.file, { timeout: PATIENCE });
  }
  if (wanted.camera) await page.click("#camera:enabled", { timeout: PATIENCE });
  await settled(null);
  let frames = 0;
  while (frames < (wanted.camera ?? 0)) {
    const last = await page.evaluateHandle(() => window.lastResult);
    frames += 1;
    await settled(last);
  }
  // Where there is none, the button would ask for it again.
  if (wanted.camera && !(await page.evaluate(() => window.lastError))) await page.click("#camera");
  if (wanted.threshold) {
    const last = await page.evaluateHandle(() => window.lastResult);
    await page.locator("#threshold").fill(wanted.threshold);
    await settled(last);
  }
  const result = await page.evaluate(() => window.lastResult ?? null);
  const status = await page.textContent("#status");
  const listed = await page.locator("#objects li").allTextContents();
  if (wanted.screenshot) await page.screenshot({ path: wanted.screenshot, fullPage: true });
  if (wanted.canvas) {
    const drawing = await page.evaluate(() => document.getElementById("canvas").toDataURL());
    await writeFile(wanted.canvas, Buffer.from(drawing.split(",")[1], "base64"));
  }
  console.log(JSON.stringify({ result, status, listed, frames, requests, refused, errors }));
} finally {
  await browser.close();
}
