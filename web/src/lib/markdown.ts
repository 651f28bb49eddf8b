// Markdown as a tree that components draw: no HTML is made from texts, so that a document cannot bring any.

export type Inline = { kind: "text" | "code"; text: string } | { kind: "strong"; inside: Inline[] } | { kind: "emphasis"; inside: Inline[] } | { kind: "link"; href: string; inside: Inline[] };
export type Block =
  | { kind: "heading"; level: number; inside: Inline[] }
  | { kind: "paragraph"; inside: Inline[] }
  | { kind: "quote"; inside: Inline[] }
  | { kind: "list"; ordered: boolean; items: Inline[][] }
  | { kind: "code"; text: string }
  | { kind: "table"; head: Inline[][]; rows: Inline[][][] }
  | { kind: "rule" };

const INLINE = /`([^`]+)`|\*\*(.+?)\*\*|__(.+?)__|\*([^*\s][^*]*)\*|\b_([^_\s][^_]*)_\b|!?\[([^\]]*)\]\(([^)\s]+)[^)]*\)/;

export function inline(text: string): Inline[] {
  const found = INLINE.exec(text);
  if (!found) return text ? [{ kind: "text", text }] : [];
  const [all, code, strong1, strong2, emphasis1, emphasis2, label, href] = found;
  const [strong, emphasis] = [strong1 ?? strong2, emphasis1 ?? emphasis2];
  const part: Inline =
    code !== undefined ? { kind: "code", text: code }
    : strong !== undefined ? { kind: "strong", inside: inline(strong) }
    : emphasis !== undefined ? { kind: "emphasis", inside: inline(emphasis) }
    // Other schemes could run scripts, or load things.
    : /^https?:\/\//.test(href ?? "") ? { kind: "link", href: href ?? "", inside: inline(label || (href ?? "")) }
    : { kind: "text", text: label ?? "" };
  const before = text.slice(0, found.index);
  return [...(before ? [{ kind: "text" as const, text: before }] : []), part, ...inline(text.slice(found.index + all.length))];
}

const row = (line: string) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
const ITEM = /^\s*([-*+]|\d+[.)])\s+/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const isTable = (lines: string[], i: number) => !!lines[i]?.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[i + 1] ?? "") && !!lines[i + 1]?.includes("-");

export function markdown(text: string): Block[] {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const blocks: Block[] = [];
  let i = 0;
  /** Takes lines while they belong to a block. */
  const take = (belongs: (line: string, i: number) => boolean) => {
    const from = i;
    while (i < lines.length && belongs(lines[i]!, i)) i++;
    return lines.slice(from, i);
  };
  while (i < lines.length) {
    const line = lines[i]!;
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    const fence = /^\s*(```|~~~)/.exec(line)?.[1];
    if (!line.trim()) i++;
    else if (fence) {
      i++;
      blocks.push({ kind: "code", text: take((l) => !l.trim().startsWith(fence)).join("\n") });
      i++;
    } else if (heading) {
      blocks.push({ kind: "heading", level: heading[1]!.length, inside: inline(heading[2]!) });
      i++;
    } else if (RULE.test(line)) {
      blocks.push({ kind: "rule" });
      i++;
    } else if (isTable(lines, i)) {
      const [head, , ...rows] = take((l) => l.includes("|"));
      blocks.push({ kind: "table", head: row(head!), rows: rows.map(row) });
    } else if (line.startsWith(">")) blocks.push({ kind: "quote", inside: inline(take((l) => l.startsWith(">")).map((l) => l.replace(/^>\s?/, "")).join(" ")) });
    else if (ITEM.test(line)) {
      const items: string[] = [];
      for (const l of take((l) => ITEM.test(l) || /^\s{2,}\S/.test(l))) {
        if (ITEM.test(l)) items.push(l.replace(ITEM, ""));
        else items.push(`${items.pop() ?? ""} ${l.trim()}`);
      }
      blocks.push({ kind: "list", ordered: /^\s*\d/.test(line), items: items.map(inline) });
    } else blocks.push({ kind: "paragraph", inside: inline(take((l, at) => !!l.trim() && !/^(#{1,6}\s|\s*(```|~~~)|>)/.test(l) && !ITEM.test(l) && !isTable(lines, at)).map((l) => l.trim()).join(" ")) });
  }
  return blocks;
}
