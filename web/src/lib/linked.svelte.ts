// The state of a page that is part of its address, so that it can be shared and the back button undoes a choice.

import { route } from "./router.svelte";

/** The address of this page with other parameters; an empty one is left out. */
export function linkTo(changes: Record<string, string | undefined>, path = route.path): string {
  const query = new URLSearchParams(route.query);
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  const text = query.toString();
  return path + (text ? `?${text}` : "");
}

/** Changes parameters of the address without a jump to the top of the page. */
export function choose(changes: Record<string, string | undefined>) {
  const top = scrollY;
  route.go(linkTo(changes));
  scrollTo(0, top);
}
