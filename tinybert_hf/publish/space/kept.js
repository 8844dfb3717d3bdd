// What the browser keeps between visits, for the page and for the worker.
import { settings } from "./settings.js";

let store; // undefined where the browser keeps nothing, as in a private window

/** What was kept under a key, or undefined. It comes before the first `keep`. */
export async function recall(key) {
  try {
    store = await import(`${settings.npm}/idb-keyval@6.3.0/dist/index.js`);
    return await store.get(key);
  } catch {
    store = undefined;
  }
}

/** Keep a value, or nothing where it is undefined. Where that fails, as on a full disk, the next visit finds the older one. */
export function keep(key, value) {
  const done = value === undefined ? store?.del(key) : store?.set(key, value);
  done?.catch(() => {});
}
