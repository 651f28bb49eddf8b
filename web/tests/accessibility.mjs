// Checks pages with axe against WCAG 2.1 A and AA and its best practices.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const source = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];

/** Fails with the elements that axe finds fault with. */
export async function assertAccessible(page, name) {
  // The style sheets are not loaded again for axe (`preload`): it needs them only for rules of other sets.
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(source);
  const { violations, passes } = await page.evaluate((values) => window.axe.run(document, { runOnly: { type: "tag", values }, preload: false }), RULES);
  assert(passes.length > 10, `${name}: axe has checked hardly anything`);
  const report = violations.flatMap((v) => v.nodes.map((n) => `${v.id} (${v.help}): ${n.target.join(" ")} ${n.html.slice(0, 200)}\n  ${n.failureSummary?.split("\n").slice(1, 3).join(" ")}`));
  assert.deepEqual(report, [], `${name}:\n${report.join("\n")}`);
}
