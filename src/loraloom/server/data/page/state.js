// What the views share: small stores, and the hook that reads them.
import { useEffect, useRef, useState } from "./html.js";
import * as api from "./api.js";

export class Store {
  constructor(value) {
    this.value = value;
    this.listeners = new Set();
  }
  set(value) {
    this.value = typeof value === "function" ? value(this.value) : value;
    for (const listener of [...this.listeners]) listener(this.value);
  }
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

export function useStore(store, choose = (value) => value) {
  const [, draw] = useState(0);
  const latest = useRef();
  latest.current = { choose, chosen: choose(store.value) };
  useEffect(() => {
    const look = (value) => {
      const { choose, chosen } = latest.current;
      if (choose(value) !== chosen) draw((n) => n + 1);
    };
    look(store.value);
    return store.listen(look);
  }, [store]);
  return latest.current.chosen;
}

/** A store that outlives the page, in this browser only. */
export function kept(key, fallback) {
  let value = fallback;
  try {
    const text = localStorage.getItem(key);
    if (text) value = { ...fallback, ...api.parse(text) };
  } catch {
    value = fallback;
  }
  const store = new Store(value);
  store.listen((next) => {
    try {
      localStorage.setItem(key, api.write(next));
    } catch {
      // A browser that keeps nothing: the page works, and forgets.
    }
  });
  return store;
}

// ---- Notices and what a screen reader is told ----

export const notices = new Store([]);
export const spoken = new Store("");
let noticeNumber = 0;

export function tell(text, { bad = false, action = null, seconds = bad ? 14 : 5 } = {}) {
  const id = ++noticeNumber;
  notices.set((all) => [...all.slice(-3), { id, text, bad, action }]);
  spoken.set(text);
  setTimeout(() => dismiss(id), seconds * 1000);
}
export const dismiss = (id) => notices.set((all) => all.filter((one) => one.id !== id));
export const fail = (error) => tell(error.message || String(error), { bad: true });

/** Run something that may be refused; what was refused is said. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof api.Refused)) console.error(error);
    fail(error);
    return undefined;
  }
}

// ---- The address bar: #/view/rest?query ----

export const place = new Store(readPlace());
function readPlace() {
  const [path, search = ""] = (location.hash.slice(1) || "/draw").split("?");
  const [view, ...rest] = path.split("/").filter(Boolean);
  return { view: view || "draw", rest: rest.map(decodeURIComponent), query: Object.fromEntries(new URLSearchParams(search)) };
}
window.addEventListener("hashchange", () => place.set(readPlace()));
export const go = (address) => {
  location.hash = address;
};

// ---- What there is to choose from ----

export const choices = new Store(null);
export async function loadChoices() {
  choices.set(await api.get("v1/draw/choices"));
}
