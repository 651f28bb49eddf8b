// Tests the main paths through the UI in a real browser, against a server with the data of the demo.
//
//   SLIPWAY_LINK="$(slipway token --ui)" node tests/ui.mjs
//
// The link signs in. For a server that requires no token, its plain address is enough.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { assertAccessible } from "./accessibility.mjs";
import { checkCharts } from "./charts.mjs";
import { checkData, dataPages } from "./data.mjs";
import { checkPipelines, pipelinePages } from "./pipelines.mjs";
import { appearances, assertFits, close, open as openContext, passedSteps, problems, shots, step } from "./browser.mjs";

const link = process.env.SLIPWAY_LINK ?? "http://127.0.0.1:7070";
const url = new URL(link).origin;

/** The cluster report that `scripts/ui-test.sh` copies into the state folder. */
const report = JSON.parse(readFileSync(new URL("cluster.json", import.meta.url), "utf8"));

/** Opens a signed-in page in a new browser context. */
async function open(options) {
  const page = await openContext(options);
  if (new URL(link).hash) {
    await page.goto(link);
    // On a phone this button is in the closed drawer.
    await page.getByRole("button", { name: "Sign out", includeHidden: true }).first().waitFor({ state: "attached" });
  }
  return page;
}

/** Waits until a page has its data: lists have rows, charts are drawn, and pictures are loaded. */
async function assertComplete(page) {
  await page.waitForFunction(() => {
    const complete = [...document.querySelectorAll("main img")].every((i) => i.complete);
    const drawn = [...document.querySelectorAll("main canvas")].every((c) => c.width > 0);
    const page = document.querySelector("main").cloneNode(true);
    // A log of a program may have these words, too.
    for (const log of page.querySelectorAll("pre, [aria-label=Failure]")) log.remove();
    return complete && drawn && !/Searching|Loading/.test(page.textContent) && document.getAnimations().length === 0;
  });
}

/** Paths of the page of a run and of a comparison, as the first steps find them. */
let runPage = "";
let comparePage = "";

try {
  const page = await open({ acceptDownloads: true });
  const sizes = [];
  page.on("response", async (r) => r.url().includes("/assets/") && sizes.push((await r.body().catch(() => Buffer.alloc(0))).length));

  await step("overview shows runs, traffic and requests", async () => {
    await page.goto(url);
    await page.getByRole("heading", { name: "Live traffic" }).waitFor();
    await page.getByText("digits-mlp").first().waitFor();
    await page.getByText("champion").first().waitFor();
    await page.getByRole("heading", { name: "Latest requests" }).waitFor();
    const total = sizes.reduce((a, b) => a + b, 0);
    assert(total > 0 && total < 400_000, `the first route loads ${total} bytes before compression`);
    await page.screenshot({ path: `${shots}/overview.png` });
  });

  await step("run table: filter, sort, columns, selection", async () => {
    await page.getByRole("link", { name: "Experiments", exact: true }).click();
    await page.getByText("4 runs").waitFor();
    await page.getByLabel("Filter").fill("metrics.accuracy > 0.97");
    await page.getByRole("button", { name: "Search" }).click();
    await page.getByText("2 runs").waitFor();
    await page.getByLabel("Filter").fill("metrics.accuracy >");
    await page.getByRole("button", { name: "Search" }).click();
    await page.getByText("Invalid clause(s) in filter string").waitFor();
    await page.getByLabel("Filter").fill("");
    await page.getByRole("button", { name: "Search" }).click();
    await page.getByText("4 runs").waitFor();
    const accuracy = page.getByRole("columnheader", { name: "accuracy", exact: true });
    await accuracy.getByRole("button").click();
    await page.locator('th[aria-sort="descending"]', { hasText: /^accuracy/ }).waitFor();
    const first = await page.locator("tbody tr:not(.gap)").first().innerText();
    assert(/digits-(mlp|forest)/.test(first), `the best run is first, not ${first}`);
    const columns = page.getByRole("button", { name: "Columns" });
    await columns.click();
    await page.getByLabel("metrics.f1_macro").uncheck();
    await page.keyboard.press("Escape");
    assert.equal(await columns.getAttribute("aria-expanded"), "false");
    assert(await columns.evaluate((b) => b === document.activeElement), "Escape returns the focus to the button");
    assert.equal(await page.getByRole("button", { name: "f1_macro" }).count(), 0);
    await page.screenshot({ path: `${shots}/runs.png` });
  });

  await step("a table is sorted by keyboard, filtered by words, and remembers both", async () => {
    const names = () => page.getByRole("table", { name: "Runs" }).locator("tbody tr").evaluateAll((rows) => rows.map((r) => r.children[1].textContent.trim()));
    const byName = page.getByRole("columnheader", { name: "Run", exact: true });
    await byName.getByRole("button").focus();
    await page.keyboard.press("Enter");
    await page.locator('th[aria-sort="ascending"]', { hasText: /^Run/ }).waitFor();
    assert.deepEqual(await names(), ["digits-forest", "digits-logreg", "digits-mlp", "digits-svm"]);
    await page.keyboard.press("Space");
    await page.locator('th[aria-sort="descending"]', { hasText: /^Run/ }).waitFor();
    assert.deepEqual(await names(), ["digits-svm", "digits-mlp", "digits-logreg", "digits-forest"]);
    assert.equal(await page.locator("th[aria-sort=ascending], th[aria-sort=descending]").count(), 1);
    await page.getByLabel("Find in Runs").fill("DIGITS logreg");
    await page.getByText("1 of 4").waitFor();
    assert.deepEqual(await names(), ["digits-logreg"]);
    await page.reload();
    await page.getByText("1 of 4").waitFor();
    assert.deepEqual(await names(), ["digits-logreg"]);
    assert.equal(await page.getByLabel("Find in Runs").inputValue(), "DIGITS logreg");
    assert.equal(await page.getByRole("button", { name: "f1_macro" }).count(), 0, "a hidden column stays hidden");
    await page.getByLabel("Find in Runs").fill("");
    await page.locator('th[aria-sort="descending"]', { hasText: /^Run/ }).waitFor();
    assert.deepEqual(await names(), ["digits-svm", "digits-mlp", "digits-logreg", "digits-forest"]);
    await page.getByLabel("Find in Runs").fill("no such run");
    await page.getByText("Nothing matches.").waitFor();
    await page.getByLabel("Find in Runs").fill("");
  });

  await step("the side bar groups the pages, folds, and remembers that", async () => {
    const bar = page.getByRole("navigation", { name: "Pages" });
    assert.deepEqual(await bar.getByRole("region").evaluateAll((groups) => groups.map((g) => g.ariaLabel)), ["Build", "Models", "Machines", "Learn"]);
    assert.equal(await bar.locator("[aria-current=page]").innerText(), "Experiments");
    for (const href of await bar.getByRole("link").evaluateAll((links) => links.map((l) => l.href))) {
      const response = await page.request.get(href, { headers: { accept: "text/html,*/*" } });
      assert.equal(response.status(), 200, href);
    }
    const width = async () => (await page.getByRole("banner").boundingBox()).width;
    const wide = await width();
    await page.getByRole("button", { name: "Side bar" }).click();
    await page.locator('button[aria-label="Side bar"][aria-expanded="false"]').waitFor();
    const narrow = await width();
    assert(narrow < 70 && wide > 150, `the side bar is ${wide} px wide, folded ${narrow} px`);
    await page.reload();
    await page.locator('button[aria-label="Side bar"][aria-expanded="false"]').waitFor();
    assert.equal(await width(), narrow);
    await assertAccessible(page, "folded side bar");
    await page.screenshot({ path: `${shots}/folded.png` });
    await bar.getByRole("link", { name: "Registry" }).click();
    await page.getByRole("heading", { name: "Registry" }).waitFor();
    await page.getByRole("button", { name: "Side bar" }).click();
    await page.locator('button[aria-label="Side bar"][aria-expanded="true"]').waitFor();
    assert.equal(await width(), wide);
  });

  await step("the command palette finds pages, models, deployments and runs, by keyboard alone", async () => {
    const palette = page.getByRole("dialog", { name: "Go to" });
    const input = palette.getByRole("combobox");
    const option = (text) => palette.getByRole("option", { name: text });
    await page.keyboard.press("Control+k");
    await input.waitFor();
    assert(await input.evaluate((e) => e === document.activeElement), "the palette has the focus");
    await input.pressSequentially("digits");
    for (const kind of [/digits.*model/, /digits.*experiment/, /digits.*deployment/, /digits-mlp.*run/]) await option(kind).first().waitFor();
    await assertAccessible(page, "command palette");
    await page.screenshot({ path: `${shots}/palette.png` });
    const active = async () => palette.locator(`#${await input.getAttribute("aria-activedescendant")}`).innerText();
    const first = await active();
    await page.keyboard.press("ArrowDown");
    assert.notEqual(await active(), first);
    await page.keyboard.press("ArrowUp");
    assert.equal(await active(), first);
    await page.keyboard.press("Tab");
    assert(await input.evaluate((e) => e === document.activeElement), "the focus stays in the palette");
    await page.keyboard.press("Escape");
    await palette.waitFor({ state: "hidden" });
    // Letters in order are enough.
    await page.keyboard.press("Control+k");
    await input.pressSequentially("dgtsmlp");
    await option(/digits-mlp.*run/).waitFor();
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "digits-mlp" }).waitFor();
    assert.match(page.url(), /\/runs\/[0-9a-f]{32}$/);
    await page.keyboard.press("Control+k");
    await input.pressSequentially("gpus");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "GPUs SIMULATED" }).waitFor();
    await page.goto(`${url}/experiments`);
    await page.getByText("4 runs").waitFor();
  });

  await step("run page: metrics, curves, lineage, artifacts", async () => {
    await page.getByRole("link", { name: "digits-mlp" }).click();
    await page.getByRole("heading", { name: "digits-mlp" }).waitFor();
    await page.getByText("uci-digits-train").waitFor();
    await page.locator(".u-wrap canvas").first().waitFor();
    await page.getByRole("button", { name: /plots/ }).click();
    await page.getByRole("button", { name: /confusion_matrix.png/ }).click();
    const picture = page.locator(".preview img");
    await picture.waitFor();
    await page.waitForFunction(() => (document.querySelector(".preview img")?.naturalWidth ?? 0) > 100);
    await page.getByRole("button", { name: /predictions.json/ }).click();
    await page.getByText('"predicted"').waitFor();
    await page.getByRole("button", { name: /confusion_matrix.png/ }).click();
    await page.screenshot({ path: `${shots}/run.png`, fullPage: true });
    runPage = new URL(page.url()).pathname;
  });

  await step("compare: differences and overlaid curves", async () => {
    await page.goBack();
    await page.getByText("4 runs").waitFor();
    for (const box of await page.getByRole("checkbox", { name: /Select digits/ }).all()) await box.check();
    await page.getByRole("button", { name: "Compare 4" }).click();
    await page.getByRole("heading", { name: "Compare 4 runs" }).waitFor();
    await page.locator(".u-wrap canvas").first().waitFor();
    await page.screenshot({ path: `${shots}/compare.png`, fullPage: true });
    comparePage = new URL(page.url()).pathname + new URL(page.url()).search;
  });

  await step("models: versions, aliases, lineage", async () => {
    await page.getByRole("link", { name: "Registry", exact: true }).click();
    await page.getByRole("heading", { name: "Lineage of digits@champion" }).waitFor();
    await page.screenshot({ path: `${shots}/models.png`, fullPage: true });
  });

  await step("deployments: the split is changed and rolled back", async () => {
    await page.getByRole("link", { name: "Deployments", exact: true }).click();
    const share = page.getByLabel("Share of challenger");
    await share.waitFor();
    const revision = Number(/revision (\d+)/.exec(await page.getByText(/revision \d+/).innerText())[1]);
    await share.fill("40");
    await page.getByRole("button", { name: "Change the split" }).click();
    await page.getByText(`revision ${revision + 1}`).waitFor();
    assert.equal(await share.inputValue(), "40");
    await page.getByRole("button", { name: "Roll back" }).click();
    await page.getByText(`revision ${revision + 2}`).waitFor();
    await page.waitForFunction(() => document.querySelector('[aria-label="Share of challenger"]')?.value === "10");
  });

  await step("try it: a real request gets a response", async () => {
    await page.getByText("Try it: send a real request").click();
    await page.getByRole("button", { name: "Send" }).click();
    await page.getByText('"model_version"').waitFor();
    await page.getByLabel("Request", { exact: true }).fill('{"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}');
    await page.getByRole("button", { name: "Send" }).click();
    await page.getByText("input 'X': shape [1, 3], expected [-1, 64]").waitFor();
    await page.screenshot({ path: `${shots}/deployments.png`, fullPage: true });
  });

  await step("GPUs: cards, slices, topology, roofline, benchmarks", async () => {
    await page.getByRole("link", { name: "GPUs", exact: true }).click();
    await page.getByText("SIMULATED").first().waitFor();
    assert.equal(await page.getByRole("region", { name: /GPU \d/ }).count(), 8);
    await page.getByText("70001").waitFor();
    await page.getByRole("img", { name: "How the GPUs are connected" }).waitFor();
    const instances = page.getByRole("img", { name: /MIG instances/ });
    await instances.waitFor();
    assert(decodeURIComponent(await instances.getAttribute("src")).includes("3g.40gb"));
    await page.getByRole("img", { name: /Roofline of .*, measured/ }).waitFor();
    await page.locator(".u-wrap canvas").first().waitFor();
    await page.getByLabel("Card").fill("A100-SXM4-80GB");
    await page.getByLabel("Card").press("Enter");
    await page.getByRole("img", { name: "Roofline of A100-SXM4-80GB, theoretical" }).waitFor();
    await page.screenshot({ path: `${shots}/gpu.png`, fullPage: true });
  });

  await step("Fit: memory by part, layouts, sliders, and what fits on nothing", async () => {
    await page.getByRole("link", { name: "Fit", exact: true }).click();
    await page.getByRole("heading", { name: "Llama 3.1 70B: 70.6b parameters" }).waitFor();
    const row = page.getByRole("row", { name: /^H100 80GB HBM3 / });
    await row.getByText("TP4").waitFor();
    await page.getByLabel("Tokens per sequence").fill("17");
    await page.getByText("640.0 GiB").waitFor();
    await page.getByRole("textbox", { name: "Model", exact: true }).fill("8x7b");
    await page.getByRole("heading", { name: /Mixtral 8x7B: 46.7b parameters, 12.7b active/ }).waitFor();
    await page.screenshot({ path: `${shots}/fit.png`, fullPage: true });
    await page.getByText("config.json", { exact: true }).click();
    await page.getByRole("textbox", { name: "config.json" }).fill("{");
    await page.getByRole("alert").getByText("config.json:").waitFor();
  });

  await step("cluster: the steps of an apply and their dependencies", async () => {
    await page.getByRole("link", { name: "Cluster", exact: true }).click();
    const section = page.getByRole("region", { name: "apply of lab" });
    await section.getByRole("heading", { name: "lab: apply" }).waitFor();
    await section.getByRole("img", { name: "Steps of lab" }).waitFor();
    assert.equal(await section.locator("rect").count(), report.steps.length);
    assert.equal(await section.locator("path").count(), report.steps.flatMap((s) => s.needs).length);
    await section.getByText("done", { exact: true }).waitFor();
    await page.screenshot({ path: `${shots}/cluster.png`, fullPage: true });
  });

  await checkCharts(page, link);

  await step("numbers and dates are in the reader's locale", async () => {
    const german = await open({ locale: "de-DE" });
    await german.goto(url);
    await german.getByText(/accuracy 0,9\d+/).first().waitFor();
    assert.equal(await german.getByText(/accuracy 0\.9\d+/).count(), 0);
    assert.match(await german.locator("time").first().getAttribute("title"), /^\d\d\.\d\d\.\d{4}, \d\d:\d\d:\d\d$/);
    await german.context().close();
  });

  await step("an empty page says what would fill it", async () => {
    await page.goto(`${url}/compare`);
    await page.getByRole("heading", { name: "No runs are selected" }).waitFor();
    await page.goto(`${url}/experiments/0`);
    await page.getByRole("heading", { name: "No runs in this experiment yet" }).waitFor();
    await page.getByText("export MLFLOW_TRACKING_URI").waitFor();
    await assertAccessible(page, "empty experiment");
    await page.screenshot({ path: `${shots}/empty.png` });
  });

  await step("the drawer of a phone opens, leads to a page, and closes on Escape", async () => {
    const phone = await open(appearances.find(([name]) => name === "phone")[1]);
    await phone.goto(url);
    const menu = phone.getByRole("button", { name: "Menu" });
    const drawer = phone.getByRole("dialog", { name: "Menu" });
    await menu.click();
    await drawer.getByRole("link", { name: "Overview" }).waitFor();
    await assertAccessible(phone, "drawer");
    await phone.screenshot({ path: `${shots}/drawer.png` });
    await phone.keyboard.press("Escape");
    await drawer.waitFor({ state: "hidden" });
    assert(await menu.evaluate((b) => b === document.activeElement), "the focus returns to the button");
    await menu.click();
    await drawer.getByRole("link", { name: "Cluster" }).click();
    await phone.getByRole("heading", { name: "Cluster", exact: true }).waitFor();
    await drawer.waitFor({ state: "hidden" });
    await phone.getByRole("button", { name: "Go to…" }).click();
    await phone.getByRole("combobox").waitFor();
    await phone.context().close();
  });

  await checkData(page, url);
  await checkPipelines(page, url);

  await step("an unknown path shows an error page", async () => {
    await page.goto(`${url}/nothing`);
    await page.getByRole("heading", { name: "No such page" }).waitFor();
  });

  await step("every page is accessible and fits, in light and dark, on a desktop and a phone", async () => {
    const pages = [
      ["overview", "/", "Live traffic"], ["experiments", "/experiments", "Experiments"], ["models", "/models", "Lineage of digits@champion"], ["deployments", "/deployments", "Deployments"],
      ["gpu", "/gpu", "GPUs SIMULATED"], ["fit", "/fit", "Llama 3.1 70B: 70.6b parameters"], ["cluster", "/cluster", "Cluster"], ["run", runPage, "digits-mlp"], ["compare", comparePage, "Compare 4 runs"],
      ...dataPages, ...pipelinePages,
    ];
    for (const [name, options] of [["light", { viewport: { width: 1280, height: 800 } }], ...appearances]) {
      const other = await open(options);
      for (const [view, path, heading] of pages) {
        await other.goto(url + path);
        await other.getByRole("heading", { name: heading, exact: true }).waitFor();
        await assertComplete(other);
        await assertFits(other, `${name} ${view}`);
        await assertAccessible(other, `${name} ${view}`);
        await other.screenshot({ path: `${shots}/${view}-${name}.png` });
      }
      await other.context().close();
    }
  });

  // The browser logs these as errors: the invalid filter, the invalid inference request, the faulty pipeline and schedule, and the unknown
  // path.
  const expected = problems.filter((p) => /status of 40[04]/.test(p));
  assert.equal(expected.length, 5, expected.join("\n"));
  assert.deepEqual(problems.filter((p) => !expected.includes(p)), []);
  console.log(`ui: ${passedSteps()} steps passed, screenshots in ${shots}`);
} catch (error) {
  // What the pages reported often explains why a step waited in vain.
  console.error(problems.join("\n"));
  throw error;
} finally {
  await close();
}
