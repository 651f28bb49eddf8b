// Layers of a graph without cycles, for drawings in which every edge leads in one direction.

/** The layer of each node: the length of its longest chain of dependencies. A dependency that is not among the nodes does not count. */
export function layers<Id>(ids: readonly Id[], needs: (id: Id) => readonly Id[]): Map<Id, number> {
  const known = new Set(ids);
  const depth = new Map<Id, number>();
  // A stack instead of recursion: chains may be longer than the call stack.
  const stack = [...ids].reverse();
  const open = new Set<Id>();
  while (stack.length) {
    const id = stack.at(-1)!;
    const before = depth.has(id) ? [] : needs(id).filter((n) => known.has(n));
    // A cycle of dependencies ends at a node that is open already.
    const missing = open.has(id) ? [] : before.filter((n) => !depth.has(n) && !open.has(n));
    if (missing.length) {
      open.add(id);
      stack.push(...missing);
      continue;
    }
    stack.pop();
    if (!depth.has(id)) depth.set(id, before.length ? 1 + Math.max(...before.map((n) => depth.get(n) ?? 0)) : 0);
  }
  return depth;
}

/** The nodes of each layer in an order with few crossing edges: near the middle of what they depend on. */
export function ordered<Id>(ids: readonly Id[], needs: (id: Id) => readonly Id[]): Id[][] {
  const depth = layers(ids, needs);
  const columns: Id[][] = [];
  ids.forEach((id) => (columns[depth.get(id) ?? 0] ??= []).push(id));
  const row = new Map<Id, number>();
  for (const column of columns) {
    const middle = new Map(
      column.map((id, i) => {
        const rows = needs(id).map((n) => row.get(n)).filter((r) => r !== undefined);
        return [id, rows.length ? rows.reduce((a, b) => a + b, 0) / rows.length : i];
      }),
    );
    column.sort((a, b) => (middle.get(a) ?? 0) - (middle.get(b) ?? 0));
    column.forEach((id, i) => row.set(id, i));
  }
  return columns;
}
