// Fuzzy matching for the command palette: the letters of the query must occur in order; matches at the start of words and without gaps
// rank higher.

/** Points of a text for a query, higher is better; undefined if the text does not match. An empty query matches everything equally. */
export function score(query: string, text: string): number | undefined {
  const wanted = query.toLowerCase();
  const given = text.toLowerCase();
  if (!wanted) return 0;
  const found = given.indexOf(wanted);
  if (found >= 0) return 1000 - Math.min(found, 500) + (isWordStart(text, found) ? 300 : 0) - given.length / 100;
  let points = 0;
  let at = -1;
  for (const letter of wanted) {
    if (letter === " ") continue;
    const next = given.indexOf(letter, at + 1);
    if (next < 0) return undefined;
    points += next === at + 1 ? 8 : isWordStart(text, next) ? 6 : 1 - Math.min(next - at, 20) / 20;
    at = next;
  }
  return points - given.length / 100;
}

function isWordStart(text: string, at: number): boolean {
  return at === 0 || /[^\p{L}\p{N}]/u.test(text[at - 1] ?? "") || /\p{Lu}/u.test(text[at] ?? "");
}

/** The entries that match, best first; at most `max`. */
export function rank<T>(query: string, entries: T[], text: (entry: T) => string, max: number): T[] {
  const rated = entries.map((entry, index) => ({ entry, index, points: score(query.trim(), text(entry)) }));
  const matching = rated.filter((r): r is typeof r & { points: number } => r.points !== undefined);
  return matching.sort((a, b) => b.points - a.points || a.index - b.index).slice(0, max).map((r) => r.entry);
}
