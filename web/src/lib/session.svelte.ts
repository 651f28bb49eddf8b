// Who the page is to the server: the token that requests carry, and all requests.
//
// `slipway up` prints a link that ends with `#token=...`. Browsers send what is behind `#` to no server and in no
// Referer header; it is taken out of the address bar at once, so that it is neither bookmarked nor copied by mistake.
// The token is kept in localStorage, so that it survives a reload and serves every tab of this origin; signing out in
// one tab signs out all. No cookie is used, so a page of another site has nothing to ride on.

const KEY = "slipway-token";
const FRAGMENT = /^#token=([\x21-\x7e]+)$/;
/** Any path that each known caller may read will do; this one costs the server little. */
const CHECK = "/api/v1/status";

/** The token in the address, which is taken out of it. */
function offered(): string | undefined {
  const found = FRAGMENT.exec(location.hash)?.[1];
  if (location.hash.startsWith("#token=")) history.replaceState(history.state, "", location.pathname + location.search);
  return found;
}

class Session {
  /** Sent with every request; empty on a server that asks for none. */
  token = $state(localStorage.getItem(KEY) ?? "");
  /** The server has answered that it wants a token, or another one. */
  needed = $state(false);

  constructor() {
    // Another tab has signed in or out.
    addEventListener("storage", (event) => {
      if (event.key === KEY || event.key === null) this.#set(localStorage.getItem(KEY) ?? "");
    });
    // A link that is opened in a tab that shows the page already changes nothing but the fragment.
    addEventListener("hashchange", () => void this.takeOffered());
  }

  #set(token: string) {
    this.token = token;
    this.needed = false;
  }

  /** Signs in with the token of the link by which the page was opened, if there is one. */
  async takeOffered() {
    const token = offered();
    // A link that somebody made up does not sign anybody out: its token has to be one of this server.
    if (token && token !== this.token) await this.signIn(token).catch(() => undefined);
  }

  /** Keeps a token if the server knows it. */
  async signIn(token: string): Promise<"signed in" | "unknown"> {
    if (!/^[\x21-\x7e]+$/.test(token)) return "unknown";
    const answer = await request(CHECK, {}, token);
    // 403: the server knows who it is, and does not let them see this.
    if (answer.status === 401) return "unknown";
    if (!answer.ok && answer.status !== 403) throw new Error(`the server answered ${answer.status}`);
    localStorage.setItem(KEY, token);
    this.#set(token);
    return "signed in";
  }

  signOut() {
    localStorage.removeItem(KEY);
    this.#set("");
  }

  /** The server has refused a request that carried `token`; not of interest if another has taken its place meanwhile. */
  refused(token: string) {
    if (token === this.token) this.needed = true;
  }
}

export const session = new Session();

/** Sends a request to this origin with this token, and with nothing that the browser keeps. */
function request(path: string, init: RequestInit, token: string): Promise<Response> {
  if (!path.startsWith("/") || path.startsWith("//")) throw new Error(`${path} is not a path of this server`);
  const headers = new Headers(init.headers);
  if (token) headers.set("authorization", `Bearer ${token}`);
  return fetch(path, { ...init, headers, credentials: "omit" });
}

/** `fetch`, as whoever is signed in. */
export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  const token = session.token;
  const answer = await request(path, init, token);
  if (answer.status === 401) session.refused(token);
  return answer;
}
