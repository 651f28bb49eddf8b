// Tests the tab Data with the repositories that `scripts/ui-test.sh` registers.

import assert from "node:assert/strict";

import { assertAccessible } from "./accessibility.mjs";
import { shots, step } from "./browser.mjs";

/** Pages of the tab that are tested in every appearance: name, path and a heading. */
export const dataPages = [
  ["data", "/data/pets?path=images", "Where the bytes are"],
  ["data-differences", "/data/pets?path=images&from=v1&to=v2&file=images%2Fcats%2F11.png&folder=cats", "Differences of v1 and v2"],
  ["data-table", "/data/pets?path=labels.csv", "Files"],
  ["data-stages", "/data/pets?view=stages", "Stages"],
  ["data-values", "/data/pets?view=values", "Loss by epoch"],
  ["data-experiments", "/data/pets?view=experiments", "Experiments"],
];

export async function checkData(page, url) {
  await step("data: repositories, data sets and versions", async () => {
    await page.goto(`${url}/data`);
    await page.getByRole("table", { name: "Repositories" }).getByRole("link", { name: "pets" }).click();
    const sets = page.getByRole("table", { name: "Data sets" });
    await sets.getByRole("link", { name: "images/", exact: true }).click();
    const versions = page.getByRole("table", { name: "Versions of images" });
    await versions.getByText("One more dog").waitFor();
    assert.equal(await versions.locator("tbody tr").count(), 3);
    await versions.getByText("v1", { exact: true }).waitFor();
    await page.getByText("complete").first().waitFor();
  });

  await step("data: two chosen versions show their differences, by folder and by file", async () => {
    const versions = page.getByRole("table", { name: "Versions of images" });
    const row = (text) => versions.locator("tr", { hasText: text });
    await row("First cats").getByLabel("old").check();
    await row("Birds").getByLabel("new").check();
    await page.getByText("2 added").waitFor();
    await page.getByText("1 changed").waitFor();
    await page.getByText("1 removed").waitFor();
    const folders = await page.getByRole("table", { name: "Changes by folder" }).locator("tbody tr").allInnerTexts();
    assert.deepEqual(folders.map((text) => text.split(/\s/)[0]), ["(directly)", "birds/", "cats/", "dogs/"]);
    const files = await page.getByRole("table", { name: "Changed files" }).locator("tbody tr").allInnerTexts();
    assert.deepEqual(files.map((text) => text.split(/\s+/).slice(0, 2).join(" ")), ["changed README.txt", "added birds/00.png", "added cats/copy.png", "removed dogs/00.png"]);
    assert.match(page.url(), /from=[0-9a-f]{40}&to=[0-9a-f]{40}/, "the choice is part of the address");
    await page.reload();
    await page.getByText("2 added").waitFor();
  });

  await step("data: files are previewed as pictures, texts and tables", async () => {
    await page.getByRole("button", { name: "README.txt" }).click();
    await page.getByText("Also birds.").waitFor();
    await page.getByRole("button", { name: /^cats\// }).click();
    await page.getByRole("button", { name: /^03\.png/ }).click();
    const picture = page.getByRole("img", { name: "images/cats/03.png" });
    await picture.waitFor();
    assert.equal(await picture.evaluate((image) => image.naturalWidth), 27);
    await page.getByRole("link", { name: "labels.csv", exact: true }).click();
    const table = page.getByRole("table", { name: "labels.csv" }).last();
    await table.getByText("images/dogs/11.png").waitFor();
    assert.deepEqual(await table.locator("th button").allInnerTexts(), ["file", "label", "width"]);
  });

  await step("data: stages that are stale, values and plots of revisions, experiments", async () => {
    await page.goto(`${url}/data/pets?view=stages`);
    const stages = page.getByRole("table", { name: "Stages" });
    await stages.locator("tr", { hasText: "features" }).first().getByText("stale").waitFor();
    await stages.getByText("'images' changed").waitFor();
    await stages.locator("tr", { hasText: "report" }).first().getByText("behind").waitFor();
    await stages.locator("tr", { hasText: "prepare" }).first().getByText("current").waitFor();
    await page.getByRole("link", { name: "Metrics and plots" }).click();
    const values = page.getByRole("table", { name: "Metrics and parameters" });
    await values.getByText("train.lr").waitFor();
    const lr = await values.locator("tr", { hasText: "train.lr" }).innerText();
    assert.match(lr, /0\.2\s+0\.2\s+0\.1/);
    await page.getByRole("img", { name: "Plot of Loss by epoch" }).waitFor();
    // A plot that is a picture is shown for each revision; only DVC tracks its bytes.
    const pictures = [page.getByRole("img", { name: "losses.svg in main" }), page.getByRole("img", { name: "losses.svg in v1" })];
    const shown = await Promise.all(pictures.map((picture) => picture.evaluate((image) => [image.complete, image.naturalWidth > 0, image.src])));
    assert.deepEqual(shown.map((picture) => picture.slice(0, 2)), [[true, true], [true, true]]);
    assert.notEqual(shown[0][2], shown[1][2], "the revisions have different pictures");
    assert.notEqual(await page.title(), "scripted", "no script of a picture runs");
    await page.getByRole("button", { name: "Remove v1" }).click();
    await page.getByRole("button", { name: "Remove v1" }).waitFor({ state: "detached" });
    await page.goBack();
    await page.getByRole("button", { name: "Remove v1" }).waitFor();
    await page.getByRole("link", { name: "Experiments" }).last().click();
    await page.getByRole("link", { name: "large-steps" }).waitFor();
  });

  await step("data: the runs, models and deployments that used a version", async () => {
    await page.goto(`${url}/data/digits?path=digits.csv.gz`);
    const uses = page.getByRole("list", { name: "Lineage" });
    await uses.getByText("digits-mlp").first().waitFor();
    await uses.getByText("model version").first().waitFor();
    await assertAccessible(page, "uses of data");
    await page.screenshot({ path: `${shots}/data-uses.png`, fullPage: true });
    await page.goto(`${url}/data?namespace=team-a`);
    await page.getByRole("heading", { name: "No repositories yet" }).waitFor();
    await page.screenshot({ path: `${shots}/data-empty.png` });
  });
}
