// A real browser that notes what goes wrong in its pages.

import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";

import { chromium } from "playwright-core";

/** Screenshots go to $SCREENSHOTS (default tests/screenshots). */
export const shots = process.env.SCREENSHOTS ?? new URL("screenshots", import.meta.url).pathname;
mkdirSync(shots, { recursive: true });

/** Looks that every page is shown in besides the first, which is a light desktop. */
export const looks = [
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

/** A page in a context of its own, which shares nothing with others. */
export async function open(options) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 850 }, colorScheme: "light", ...options });
  await context.exposeFunction("noteViolation", (text) => problems.push(`policy: ${text}`));
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (e) => window.noteViolation(`${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber} ${e.sample}`));
  });
  return tab(context);
}

/** One more page of a context. */
export async function tab(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  page.on("console", (m) => m.type() === "error" && problems.push(`console: ${m.text()}`));
  page.on("pageerror", (e) => problems.push(`page: ${e.message}`));
  return page;
}

/** Fails when a page is wider than its window. */
export async function fits(page, name) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert(wide <= 0, `${name} scrolls sideways by ${wide} px`);
}

let passed = 0;
export const steps = () => passed;
export async function step(name, action) {
  await action();
  passed++;
  console.log(`ok ${name}`);
}
