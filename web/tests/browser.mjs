// Opens pages in a real browser and records their errors.

import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";

import { chromium } from "playwright-core";

/** Screenshots go to $SCREENSHOTS (default tests/screenshots). */
export const shots = process.env.SCREENSHOTS ?? new URL("screenshots", import.meta.url).pathname;
mkdirSync(shots, { recursive: true });

/** Appearances that pages are tested in, besides the default (light, desktop). */
export const appearances = [
  ["dark", { colorScheme: "dark" }],
  ["phone", { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 }],
  ["phone-dark", { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, colorScheme: "dark" }],
];

/** Errors of pages and of their consoles, and violations of the content security policy. */
export const problems = [];

const executablePath = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
assert(executablePath, "no Chromium found: apt install chromium, or set CHROMIUM");
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
export const close = () => browser.close();

/** Opens a page in a new browser context, which shares no state with others. */
export async function open(options) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 850 }, colorScheme: "light", ...options });
  await context.exposeFunction("noteViolation", (text) => problems.push(`policy: ${text}`));
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (e) => window.noteViolation(`${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber} ${e.sample}`));
  });
  return tab(context);
}

/** Opens another tab in a context. */
export async function tab(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  page.on("console", (m) => m.type() === "error" && problems.push(`console: ${m.text()}`));
  page.on("pageerror", (e) => problems.push(`page: ${e.message}`));
  return page;
}

/** Fails when a page is wider than its window. */
export async function assertFits(page, name) {
  const excess = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert(excess <= 0, `${name} scrolls sideways by ${excess} px`);
}

let passed = 0;
export const passedSteps = () => passed;
export async function step(name, action) {
  await action();
  passed++;
  console.log(`ok ${name}`);
}
