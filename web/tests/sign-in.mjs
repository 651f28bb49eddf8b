// Tests signing in and out, and the display of untrusted names and artifacts, in a real browser.
//
//   SLIPWAY=../target/release/slipway node tests/sign-in.mjs
//
// Starts its own server on free ports.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { assertAccessible } from "./accessibility.mjs";
import { appearances, assertFits, close, open, passedSteps, problems, shots, step, tab } from "./browser.mjs";

const binary = resolve(process.env.SLIPWAY ?? "../target/release/slipway");
const folder = mkdtempSync(join(tmpdir(), "slipway-sign-in-"));
const home = join(folder, "home");
const token = "0123456789abcdef0123456789abcdef";
mkdirSync(home, { mode: 0o700 });
writeFileSync(join(home, "token"), `${token}\n`, { mode: 0o600 });
const environment = { ...process.env, SLIPWAY_GPU_FIXTURE: "h100x8" };
const server = spawn(
  binary,
  ["up", "--home", home, "--token-file", join(home, "token"), "--listen", "127.0.0.1:0", "--inference-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"],
  { env: environment, stdio: ["ignore", "ignore", "inherit"] },
);

/** Polls until `poll` returns a value; errors count as no value. */
async function waitFor(condition, poll) {
  for (const deadline = Date.now() + 30_000; Date.now() < deadline; await sleep(20)) {
    const found = await Promise.resolve().then(poll).catch(() => undefined);
    if (found) return found;
  }
  throw new Error(`timed out after 30 s: ${condition}`);
}

const control = await waitFor("the server listens", () => JSON.parse(readFileSync(join(home, "server.json"), "utf8")).control);
const url = `http://${control}`;

async function call(method, path, body, type = "application/json") {
  const response = await fetch(url + path, { method, headers: { authorization: `Bearer ${token}`, "content-type": type }, body });
  assert(response.ok, `${method} ${path}: ${response.status}`);
  return response.headers.get("content-type")?.includes("json") ? response.json() : response.text();
}

/** A picture of one red pixel, and a picture with a script that must not run. */
const png = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==", "base64");
const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" onload="parent.owned=1"><script>parent.owned=1;window.owned=1</script><rect width="40" height="40" fill="teal"/></svg>';
const name = '<img src=x onerror="window.owned=1">';

try {
  const { run } = await call("POST", "/api/2.0/mlflow/runs/create", JSON.stringify({ experiment_id: "0", run_name: name }));
  const id = run.info.run_id;
  for (const [file, bytes] of [["pixel.png", png], ["bad.svg", svg], ["page.html", "<script>window.owned=1</script>"], ["note.txt", "hello"]])
    await call("PUT", `/api/2.0/mlflow-artifacts/artifacts/0/${id}/artifacts/${file}`, bytes, "application/octet-stream");

  const page = await open({ acceptDownloads: true });
  const context = page.context();
  const requests = [];
  page.on("request", (r) => requests.push(r));
  const signedIn = (p = page) => p.getByRole("heading", { name: "Live traffic" }).or(p.getByText("experiments").first()).first().waitFor();
  const signInForm = (p = page) => p.getByRole("heading", { name: "Sign in" }).waitFor();

  await step("without a token only the sign-in form is shown", async () => {
    await page.goto(`${url}/experiments`);
    await signInForm();
    assert.equal(await page.getByRole("button", { name: "Sign out" }).count(), 0);
    assert.equal(await page.getByText("Default").count(), 0);
    await assertAccessible(page, "sign-in");
    await page.screenshot({ path: `${shots}/sign-in.png` });
    for (const [appearance, options] of appearances) {
      const other = await open(options);
      await other.goto(url);
      await signInForm(other);
      await assertFits(other, `sign-in ${appearance}`);
      await assertAccessible(other, `sign-in ${appearance}`);
      await other.screenshot({ path: `${shots}/sign-in-${appearance}.png` });
      await other.context().close();
    }
  });

  await step("an invalid token is rejected and not stored", async () => {
    for (const invalid of ["not-the-token-of-this-server", "grüße"]) {
      await page.getByLabel("Token").fill(invalid);
      await page.getByRole("button", { name: "Sign in" }).click();
      await page.getByText("does not accept this token").waitFor();
    }
    await page.screenshot({ path: `${shots}/sign-in-wrong.png` });
    assert.equal(await page.evaluate(() => localStorage.length), 0);
  });

  await step("a valid token signs in on the same page, and survives a reload and a new tab", async () => {
    await page.getByLabel("Token").fill(` ${token} `);
    await page.getByLabel("Token").press("Enter");
    await page.getByText("1 runs").waitFor();
    await page.reload();
    await page.getByText("1 runs").waitFor();
    const second = await tab(context);
    await second.goto(url);
    await second.getByRole("button", { name: "Sign out" }).waitFor();
    await second.screenshot({ path: `${shots}/signed-in.png` });
    await page.getByRole("button", { name: "Sign out" }).click();
    await signInForm();
    await signInForm(second);
    await second.close();
    assert.equal(await page.evaluate(() => localStorage.getItem("slipway-token")), null);
  });

  await step("the link of `slipway token --ui` signs in, and the token is removed from the address", async () => {
    const link = execFileSync(binary, ["token", "--ui", "--home", home], { encoding: "utf8", env: environment }).trim();
    assert.equal(link, `${url}/#token=${token}`);
    await page.goto(link);
    await page.getByRole("button", { name: "Sign out" }).waitFor();
    assert.equal(page.url(), `${url}/`);
    await page.goto(`${url}/models`);
    await page.goBack();
    assert.equal(page.url(), `${url}/`, "the token is not in the history");
    // The same link in a tab that shows the page already.
    await page.getByRole("button", { name: "Sign out" }).click();
    await signInForm();
    await page.evaluate((t) => { location.hash = `token=${t}`; }, token);
    await page.getByRole("button", { name: "Sign out" }).waitFor();
    assert.equal(page.url(), `${url}/`);
  });

  await step("a link with a forged token does not sign the user out", async () => {
    await page.goto(`${url}/experiments#token=made-up-by-a-stranger`);
    await page.getByText("1 runs").waitFor();
    assert.equal(page.url(), `${url}/experiments`);
    assert.equal(await page.evaluate(() => localStorage.getItem("slipway-token")), token);
  });

  await step("requests carry the token only in a header", () => {
    const api = requests.filter((r) => /\/(api|ajax-api|get-artifact)/.test(new URL(r.url()).pathname));
    assert(api.some((r) => r.headers().authorization === `Bearer ${token}`));
    for (const r of requests) {
      assert(!r.url().replace(/#.*/, "").includes(token), r.url());
      assert.equal(r.headers().cookie, undefined);
    }
    assert(requests.filter((r) => !api.includes(r)).every((r) => !r.headers().authorization), "static files need no token");
  });

  await step("untrusted names and artifacts are shown without running scripts", async () => {
    await page.getByRole("link", { name }).click();
    await page.getByRole("heading", { name }).waitFor();
    const picture = page.locator(".preview img");
    for (const [file, size] of [["pixel.png", 1], ["bad.svg", 40]]) {
      await page.getByRole("button", { name: file }).click();
      await page.getByRole("img", { name: file }).waitFor();
      await page.waitForFunction((width) => document.querySelector(".preview img")?.naturalWidth === width, size);
      assert((await picture.getAttribute("src")).startsWith("data:image/"));
    }
    await page.getByRole("button", { name: "note.txt" }).click();
    await page.locator(".preview pre").getByText("hello").waitFor();
    await page.getByRole("button", { name: "page.html" }).click();
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download" }).click()]);
    assert.equal(download.suggestedFilename(), "page.html");
    assert.equal(readFileSync(await download.path(), "utf8"), "<script>window.owned=1</script>");
    assert(download.url().startsWith("blob:"));
    assert.equal(await page.evaluate(() => window.owned), undefined);
    await page.screenshot({ path: `${shots}/artifacts.png` });
  });

  await step("pictures of GPUs use the colour theme of the page", async () => {
    for (const theme of ["light", "dark"]) {
      await page.goto(`${url}/gpu`);
      await page.evaluate((value) => localStorage.setItem("theme", value), theme);
      await page.reload();
      const topology = page.getByRole("img", { name: "How the GPUs are connected" });
      await topology.waitFor();
      await page.waitForFunction(() => [...document.querySelectorAll("section img")].every((i) => i.complete && i.naturalWidth > 0));
      await topology.screenshot({ path: `${shots}/topology-${theme}.png` });
    }
  });

  await step("a revoked token leads back to the sign-in form", async () => {
    await page.evaluate(() => localStorage.setItem("slipway-token", "a-revoked-token"));
    await page.goto(`${url}/models`);
    await signInForm();
    await page.getByText("no longer accepted").waitFor();
  });

  // The browser logs every response 401 as an error; those are expected, all others are not.
  assert.deepEqual(problems.filter((p) => !p.includes("status of 401")), []);
  console.log(`sign-in: ${passedSteps()} steps passed, screenshots in ${shots}`);
} finally {
  await close();
  server.kill("SIGTERM");
  await new Promise((ended) => (server.exitCode === null ? server.once("exit", ended) : ended()));
  rmSync(folder, { recursive: true });
}
