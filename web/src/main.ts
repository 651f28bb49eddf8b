import { mount } from "svelte";

import App from "./App.svelte";
import { session } from "./lib/session.svelte";
import "./app.css";

// Before anything is asked for, so that no view shows an error while the token is still in the address.
await session.takeOffered();
const target = document.getElementById("app");
if (target) mount(App, { target });
