// The session: the token of the signed-in user. All requests to the server go through this module, which adds the token.
//
// `slipway up` prints a link that ends with `#token=...`. Browsers never send the fragment behind `#` to a server, nor in
// a Referer header; it is removed from the address bar at once, so that it is neither bookmarked nor copied by mistake.
// The token is stored in localStorage, so that it survives a reload and is shared by all tabs of this origin; signing out
// in one tab signs out all. No cookie is used, so another site cannot forge requests with this session (CSRF).

const KEY = "slipway-token";
const FRAGMENT = /^#token=([\x21-\x7e]+)$/;
/** Requested to check a token: every user may read it, and it costs the server little. */
const CHECK_PATH = "/api/v1/status";

/** Removes the token from the address bar and returns it. */
function takeTokenFromUrl(): string | undefined {
  const found = FRAGMENT.exec(location.hash)?.[1];
  if (location.hash.startsWith("#token=")) history.replaceState(history.state, "", location.pathname + location.search);
  return found;
}

class Session {
  /** Sent with every request; empty when nobody is signed in, which is enough for a server that requires no token. */
  token = $state(localStorage.getItem(KEY) ?? "");
  /** True after a response 401: the server requires a token, or rejects this one. */
  signInRequired = $state(false);

  constructor() {
    // Another tab has signed in or out.
    addEventListener("storage", (event) => {
      if (event.key === KEY || event.key === null) this.#set(localStorage.getItem(KEY) ?? "");
    });
    // Opening a sign-in link in a tab that already shows this page only changes the fragment, without a reload.
    addEventListener("hashchange", () => void this.signInFromUrl());
  }

  #set(token: string) {
    this.token = token;
    this.signInRequired = false;
  }

  /** Signs in with the token in the URL, if there is one. */
  async signInFromUrl() {
    const token = takeTokenFromUrl();
    // The token replaces the current one only if the server accepts it, so that a forged link cannot sign the user out.
    if (token && token !== this.token) await this.signIn(token).catch(() => undefined);
  }

  /** Stores the token if the server accepts it. */
  async signIn(token: string): Promise<"signed in" | "rejected"> {
    if (!/^[\x21-\x7e]+$/.test(token)) return "rejected";
    const response = await request(CHECK_PATH, {}, token);
    // 403 means that the token is valid but lacks permission for this path.
    if (response.status === 401) return "rejected";
    if (!response.ok && response.status !== 403) throw new Error(`the server returned status ${response.status}`);
    localStorage.setItem(KEY, token);
    this.#set(token);
    return "signed in";
  }

  signOut() {
    localStorage.removeItem(KEY);
    this.#set("");
  }

  /** Records that the server rejected `token`; ignored if another token has replaced it meanwhile. */
  rejected(token: string) {
    if (token === this.token) this.signInRequired = true;
  }
}

export const session = new Session();

/** Sends a request to this origin with this token, and without cookies. */
function request(path: string, init: RequestInit, token: string): Promise<Response> {
  if (!path.startsWith("/") || path.startsWith("//")) throw new Error(`${path} is not a path of this server`);
  const headers = new Headers(init.headers);
  if (token) headers.set("authorization", `Bearer ${token}`);
  return fetch(path, { ...init, headers, credentials: "omit" });
}

/** `fetch` with the token of the session. */
export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  const token = session.token;
  const response = await request(path, init, token);
  if (response.status === 401) session.rejected(token);
  return response;
}
