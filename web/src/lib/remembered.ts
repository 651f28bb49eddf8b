// Choices of the reader that survive a reload, in the browser's localStorage: nothing secret, and nothing that the server needs.

/** Reads a saved value; anything unreadable, or that `valid` rejects, counts as not saved. */
export function recall<T>(key: string, valid: (value: unknown) => value is T): T | undefined {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(key) ?? "null");
    return valid(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Saves a value; `undefined` removes it. A full or forbidden storage only means that the choice is not remembered. */
export function remember(key: string, value: unknown) {
  try {
    if (value === undefined) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // The choice holds until the next reload.
  }
}
