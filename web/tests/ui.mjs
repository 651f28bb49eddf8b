// Tests the main paths through the UI in a real browser, against a server with the data of the demo.
//
//   SLIPWAY_LINK="$(slipway token --ui)" node tests/ui.mjs
//
// The link signs in. For a server that requires no token, its plain address is enough.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

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
    await page.getByRole("button", { name: "Sign out" }).waitFor();
  }
  return page;
}

try {
  const page = await open({});
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
    await page.getByRole("button", { name: "accuracy", exact: true }).click();
    await page.getByRole("button", { name: "accuracy ↓" }).waitFor();
    const first = await page.locator("tbody tr:not(.gap)").first().innerText();
    assert(/digits-(mlp|forest)/.test(first), `the best run is first, not ${first}`);
    await page.getByText("Columns").click();
    await page.getByLabel("metrics.f1_macro").uncheck();
    await page.getByText("Columns").click();
    assert.equal(await page.getByRole("button", { name: "f1_macro" }).count(), 0);
    await page.screenshot({ path: `${shots}/runs.png` });
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
  });

  await step("compare: differences and overlaid curves", async () => {
    await page.goBack();
    await page.getByText("4 runs").waitFor();
    for (const box of await page.getByRole("checkbox", { name: /Select digits/ }).all()) await box.check();
    await page.getByRole("button", { name: "Compare 4" }).click();
    await page.getByRole("heading", { name: "Compare 4 runs" }).waitFor();
    await page.locator(".u-wrap canvas").first().waitFor();
    await page.screenshot({ path: `${shots}/compare.png`, fullPage: true });
  });

  await step("models: versions, aliases, lineage", async () => {
    await page.getByRole("link", { name: "Models", exact: true }).click();
    await page.getByRole("heading", { name: "Lineage of digits@champion" }).waitFor();
    await page.screenshot({ path: `${shots}/models.png`, fullPage: true });
  });

  await step("deployments: the split is changed and rolled back", async () => {
    await page.getByRole("link", { name: "Deployments", exact: true }).click();
    const share = page.getByLabel("Share of challenger");
    await share.waitFor();
    await share.fill("40");
    await page.getByRole("button", { name: "Change the split" }).click();
    await page.getByText("revision 2").waitFor();
    assert.equal(await share.inputValue(), "40");
    await page.getByRole("button", { name: "Roll back" }).click();
    await page.getByText("revision 3").waitFor();
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
    await page.getByRole("link", { name: "GPU", exact: true }).click();
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

  await step("an unknown path shows an error page", async () => {
    await page.goto(`${url}/nothing`);
    await page.getByRole("heading", { name: "No such page" }).waitFor();
  });

  await step("phone width and dark colours, no sideways scrolling", async () => {
    for (const [name, options] of appearances) {
      const other = await open(options);
      for (const [view, ready] of [["", "Live traffic"], ["experiments", "Experiments"], ["models", "Lineage of digits@champion"], ["deployments", "Deployments"], ["gpu", "GPUs SIMULATED"], ["cluster", "Cluster"]]) {
        await other.goto(`${url}/${view}`);
        await other.getByRole("heading", { name: ready, exact: true }).waitFor();
        await other.waitForTimeout(400);
        await assertFits(other, `${name} ${view}`);
        await other.screenshot({ path: `${shots}/${view || "overview"}-${name}.png` });
      }
      await other.context().close();
    }
  });

  // The browser logs these as errors: the invalid filter, the invalid inference request, and the unknown path.
  const expected = problems.filter((p) => /status of 40[04]/.test(p));
  assert.equal(expected.length, 3, expected.join("\n"));
  assert.deepEqual(problems.filter((p) => !expected.includes(p)), []);
  console.log(`ui: ${passedSteps()} steps passed, screenshots in ${shots}`);
} finally {
  await close();
}
