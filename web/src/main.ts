import { mount } from "svelte";

import App from "./App.svelte";
import { session } from "./lib/session.svelte";
import "./app.css";

// Sign in before any view sends a request; otherwise it would show an error while the token is still in the URL.
await session.signInFromUrl();
const target = document.getElementById("app");
if (target) mount(App, { target });
