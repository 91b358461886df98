// What the relay logs: the filter in force and, for those who may act, another one.

import { at, write } from "./dom.js";
import { attempt, tell } from "./dialog.js";

/** How often it is asked for while nothing is heard of a change. */
const AGAIN_MS = 10_000;

let session = null;
let askedAtMs = -Infinity;

/** Listens to what people do; `it` has the `api`, and `refresh()` asks anew. */
export function begin(it) {
  session = it;
  at("log").addEventListener("submit", set);
}

/** Whoever did something may have changed it. */
export function heard(name) {
  if (name === "admin") askedAtMs = -Infinity;
}

/** Asks for it and shows it. */
export async function update() {
  at("log").hidden = session.readOnly();
  if (performance.now() - askedAtMs < AGAIN_MS) return;
  const { filter } = await session.api.get("admin/log");
  askedAtMs = performance.now();
  write(at("log-now"), filter);
}

/** Nothing is known any more. */
export function forget() {
  askedAtMs = -Infinity;
  write(at("log-now"), "–");
  at("log").reset();
  at("log-said").hidden = true;
}

function set(event) {
  event.preventDefault();
  const change = async () => {
    const { filter } = await session.api.put("admin/log", { filter: at("log-filter").value.trim() });
    write(at("log-now"), filter);
    tell(`The relay logs ${filter} from now on.`);
    at("log").reset();
    session.refresh();
  };
  attempt(at("log-set"), at("log-said"), change, () => !session.readOnly());
}
