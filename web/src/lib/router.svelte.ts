// Client-side routing: the URL path selects the view, so links, reload and the back button work.

class Route {
  path = $state(location.pathname);
  query = $state(new URLSearchParams(location.search));

  constructor() {
    addEventListener("popstate", () => this.#read());
    addEventListener("click", (event) => {
      if (event.defaultPrevented) return;
      const link = (event.target as Element | null)?.closest?.("a");
      const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey;
      if (!link || !plain || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
      if (/^\/(apis?\b|ajax-api|get-artifact|metrics|openapi)/.test(link.pathname)) return;
      event.preventDefault();
      this.go(link.pathname + link.search);
    });
  }

  #read() {
    this.path = location.pathname;
    this.query = new URLSearchParams(location.search);
  }

  go(to: string) {
    history.pushState(null, "", to);
    this.#read();
    scrollTo(0, 0);
  }

  /** The path segments after the first: `/runs/abc` gives `["abc"]`. */
  get rest(): string[] {
    return this.path.split("/").slice(2).filter(Boolean).map(decodeURIComponent);
  }
}

export const route = new Route();
