// Tests charts in a real browser: on a run with 100,000 points, one outlier among them, and on a comparison with a short run.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { assertAccessible } from "./accessibility.mjs";
import { shots, step } from "./browser.mjs";

const POINTS = 100_000;
const OUTLIER = { step: 54_321, value: 1000 };
/** MLflow's limit of metrics in a request. */
const BATCH = 1000;
const START = Date.UTC(2026, 0, 15, 8);

/** Runs the checks on a signed-in page. The runs they need are created in the default experiment, and deleted afterwards. */
export async function checkCharts(page, link) {
  const url = new URL(link).origin;
  const token = new URL(link).hash.replace("#token=", "");
  async function call(path, body) {
    const headers = { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(`${url}/api/2.0/mlflow/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
    assert(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
    return response.json();
  }
  const create = async (run_name) => (await call("runs/create", { experiment_id: "0", run_name, start_time: START })).run.info.run_id;
  const value = (step) => (step === OUTLIER.step ? OUTLIER.value : 2 + Math.sin(step / 3000) + ((step * 7919) % 1000) / 2000);
  const metric = (key, step, value) => ({ key, step, value, timestamp: START + step * 100 });
  const finish = (run_id) => call("runs/update", { run_id, status: "FINISHED", end_time: START + POINTS * 100 });

  const long = await create("long");
  const short = await create("short");
  try {
    for (let from = 0; from < POINTS; from += BATCH)
      await call("runs/log-batch", { run_id: long, metrics: Array.from({ length: BATCH }, (_, i) => metric("signal", from + i, value(from + i))) });
    await call("runs/log-batch", { run_id: long, metrics: [metric("score", 0, 0.75)] });
    // Some values that a logarithmic axis cannot show.
    await call("runs/log-batch", { run_id: short, metrics: [...Array.from({ length: 50 }, (_, i) => metric("signal", i * 1000, i - 5)), metric("score", 0, 0.5)] });
    await Promise.all([finish(long), finish(short)]);

    const figure = (title) => page.getByRole("figure", { name: title, exact: true });
    const drawing = (title) => figure(title).getByRole("img");
    const summary = (title, text) => figure(title).getByRole("img", { name: text });
    const tool = (title, name) => figure(title).getByRole("button", { name });
    const pixels = (title) => figure(title).locator("canvas").evaluate((c) => c.toDataURL());
    /** Performs an action and waits until it has changed what is drawn. */
    async function redraws(title, action) {
      const before = await pixels(title);
      await action();
      await page.waitForFunction(([title, before]) => document.querySelector(`figure[aria-label="${title}"] canvas`)?.toDataURL() !== before, [title, before]);
    }
    async function drag(title, from, to) {
      await figure(title).locator(".u-over").scrollIntoViewIfNeeded();
      const box = await figure(title).locator(".u-over").boundingBox();
      await page.mouse.move(box.x + box.width * from, box.y + box.height / 2);
      await page.mouse.down();
      await page.mouse.move(box.x + box.width * to, box.y + box.height / 2, { steps: 4 });
      await page.mouse.up();
    }
    async function saved(title, name) {
      const [download] = await Promise.all([page.waitForEvent("download"), tool(title, name).click()]);
      return { name: download.suggestedFilename(), content: readFileSync(await download.path()) };
    }

    await step("chart: a zoom loads the points that the overview has not", async () => {
      await page.goto(`${url}/runs/${long}`);
      await summary("signal", /from 0 to 99,\d+/).waitFor();
      const overview = await drawing("signal").getAttribute("aria-label");
      assert(!overview.includes("and 1,000,"), `the server's sample misses the outlier, or this test shows nothing: ${overview}`);
      await page.screenshot({ path: `${shots}/chart-100000.png`, fullPage: true });
      await drag("signal", 0.53, 0.56);
      await summary("signal", /between 1\.\d+ and 1,000,/).waitFor();
      await page.screenshot({ path: `${shots}/chart-zoomed.png`, fullPage: true });
      await figure("signal").locator(".u-over").dblclick();
      await summary("signal", /from 0 to 99,\d+/).waitFor();
    });

    await step("chart: the keyboard zooms too", async () => {
      await tool("signal", "Zoom in").focus();
      await page.keyboard.press("Enter");
      await summary("signal", /from 24,\d+(\.\d+)? to 74,\d+/).waitFor();
      await tool("signal", "Zoom out").press("Enter");
      await summary("signal", /from 0 to 99,\d+/).waitFor();
    });

    await step("chart: 100,000 points are drawn at once, and the outlier with them", async () => {
      await tool("signal", "Load every point").click();
      await summary("signal", /100,000 points between 1(\.\d+)? and 1,000,/).waitFor();
      // In the upper half of the drawing, only the outlier has colour: a line of a few pixels in width.
      const columns = await figure("signal").locator("canvas").evaluate((c) => {
        const height = Math.floor(c.height / 2);
        const { data } = c.getContext("2d").getImageData(0, 0, c.width, height);
        const found = new Set();
        for (let i = 0; i < data.length; i += 4) if (data[i + 2] - data[i] > 80 && data[i + 3] > 100) found.add((i / 4) % c.width);
        return found.size;
      });
      assert(columns >= 1 && columns <= 8, `the outlier is drawn in ${columns} columns of pixels`);
      await page.screenshot({ path: `${shots}/chart-complete.png`, fullPage: true });
      // From a zoom to everything: thinning and drawing, without loading.
      await tool("signal", "Zoom in").click();
      await summary("signal", /from 2\d,/).waitFor();
      const took = await page.evaluate(async () => {
        const [image, button] = [document.querySelector('figure[aria-label="signal"] [role=img]'), document.querySelector('figure[aria-label="signal"] [aria-label="Show everything"]')];
        const start = performance.now();
        button.click();
        while (!/from 0 to/.test(image.ariaLabel)) await new Promise(requestAnimationFrame);
        await new Promise(requestAnimationFrame);
        return performance.now() - start;
      });
      assert(took < 1000, `100,000 points take ${took.toFixed(0)} ms to draw`);
    });

    await step("chart: CSV has every point, PNG is a picture", async () => {
      await page.reload();
      await summary("signal", /from 0 to 99,\d+/).waitFor();
      const csv = await saved("signal", "Save as CSV");
      assert.equal(csv.name, "signal.csv");
      const lines = csv.content.toString().trimEnd().split("\r\n");
      assert.equal(lines[0], "series,step,time,signal");
      assert.equal(lines.length, POINTS + 1);
      assert(lines.includes(`long,${OUTLIER.step},${new Date(START + OUTLIER.step * 100).toISOString()},${OUTLIER.value}`));
      const png = await saved("signal", "Save as picture");
      assert.equal(png.name, "signal.png");
      assert.equal(png.content.subarray(1, 4).toString(), "PNG");
      assert(png.content.readUInt32BE(16) > 300 && png.content.readUInt32BE(20) > 200, "the picture has the size of the chart");
    });

    await step("chart: smoothing keeps the zoom", async () => {
      await tool("signal", "Zoom in").click();
      await summary("signal", /from 2\d,\d+(\.\d+)? to 7\d,/).waitFor();
      await redraws("signal", () => page.getByLabel("Smoothing").fill("0.5"));
      await summary("signal", /from 2\d,\d+(\.\d+)? to 7\d,/).waitFor();
      await tool("signal", "Show everything").click();
      await summary("signal", /from 0 to 99,\d+/).waitFor();
    });

    await step("chart: smoothing, logarithmic axis and time axis are drawn and remembered", async () => {
      await redraws("signal", () => page.getByLabel("Smoothing").fill("0.9"));
      await redraws("signal", () => page.getByLabel("Logarithmic").check());
      await page.getByLabel("Horizontal").selectOption("relative");
      await summary("signal", /over time since the start, from 0 s to 2:46:3\d/).waitFor();
      await page.getByLabel("Horizontal").selectOption("time");
      await summary("signal", /over time, from Jan 15, 2026/).waitFor();
      await page.screenshot({ path: `${shots}/chart-smoothed.png`, fullPage: true });
      await page.reload();
      await summary("signal", /over time, from Jan 15, 2026/).waitFor();
      assert.equal(await page.getByLabel("Smoothing").inputValue(), "0.9");
      assert(await page.getByLabel("Logarithmic").isChecked());
      await page.getByLabel("Horizontal").selectOption("step");
      await page.getByLabel("Smoothing").fill("0");
      await page.getByLabel("Logarithmic").uncheck();
    });

    await step("chart: a single point is a dot", async () => {
      await page.getByText("Measured once (1)").click();
      await summary("score", /1 points between 0\.75 and 0\.75/).waitFor();
      // Everything else on the canvas is grey: only the dot has a colour.
      const dot = await figure("score").locator("canvas").evaluate((c) => {
        const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) if (data[i + 2] - data[i] > 80 && data[i + 3] > 100) count++;
        return count;
      });
      assert(dot >= 20, `the dot has ${dot} pixels`);
      await page.screenshot({ path: `${shots}/chart-point.png`, fullPage: true });
    });

    await step("chart: several runs, a legend that hides, a table of the points", async () => {
      await page.goto(`${url}/compare?runs=${long},${short}`);
      await summary("signal", /long: .*; short: 50 points between -5 and 44/).waitFor();
      await redraws("signal", () => figure("signal").getByRole("button", { name: "long" }).click());
      await summary("signal", /\. short: 50 points/).waitFor();
      assert.equal(await figure("signal").getByRole("button", { name: "long" }).getAttribute("aria-pressed"), "false");
      // Values of zero and below have no place on a logarithmic axis.
      await page.getByLabel("Logarithmic").check();
      await summary("signal", /short: 44 points between 1 and 44/).waitFor();
      await page.getByLabel("Logarithmic").uncheck();
      await figure("signal").getByRole("button", { name: "short" }).click();
      await page.getByText("Every series is hidden.").waitFor();
      await figure("signal").getByRole("button", { name: "long" }).click();
      await figure("signal").getByRole("button", { name: "short" }).click();
      await tool("signal", "Points as a table").click();
      await page.getByRole("table", { name: "Points of signal" }).getByRole("row").nth(2).waitFor();
      await page.getByText("Measured once (1)").click();
      await assertAccessible(page, "comparison with points");
      await page.screenshot({ path: `${shots}/chart-runs.png`, fullPage: true });
    });
  } finally {
    for (const run_id of [long, short]) await call("runs/delete", { run_id });
  }

  await step("chart: the cursor is at the same step in all charts", async () => {
    await page.goto(`${url}/experiments`);
    await page.getByRole("link", { name: "digits-mlp" }).click();
    await page.getByRole("figure", { name: "val_loss" }).locator("canvas").waitFor();
    await page.getByRole("figure", { name: "train_loss" }).locator(".u-over").hover();
    const shown = (title) => page.getByRole("figure", { name: title }).locator(".value");
    await shown("train_loss").getByText(/^\d+: /).waitFor();
    await shown("val_loss").getByText(/^\d+: /).waitFor();
    assert.equal((await shown("val_loss").innerText()).split(":")[0], (await shown("train_loss").innerText()).split(":")[0]);
  });
}
