// What is known of the LoRA files: all of them, read once, then only what has changed.
import * as api from "./api.js";
import { stem } from "./controls.js";
import { Store } from "./state.js";

export const library = new Store({ entries: [], byName: new Map(), version: 0, read: 0, total: 0, ready: false });
const POLL_MILLISECONDS = 700;
let loading = null;

export function loadLibrary(anew = false) {
  loading ??= load(anew).finally(() => {
    loading = null;
  });
  return loading;
}

async function load(anew) {
  let found = await api.get(`v1/loras?${api.query({ scan: anew || undefined })}`);
  take(found, true);
  while (found.read < found.total) {
    await new Promise((done) => setTimeout(done, POLL_MILLISECONDS));
    found = await api.get(`v1/loras?${api.query({ since: found.version })}`);
    take(found, found.whole);
  }
}

function take(found, whole) {
  const byName = whole ? new Map() : new Map(library.value.byName);
  for (const entry of found.loras) byName.set(entry.name, entry);
  for (const name of found.gone ?? []) byName.delete(name);
  const entries = [...byName.values()].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true, sensitivity: "base" }));
  nameApart(entries);
  library.set({ entries, byName, version: found.version, read: found.read, total: found.total, ready: true });
}

/** What each is called in lists: its title or file name, and its folder too where that is another's name as well. */
function nameApart(entries) {
  const counts = new Map();
  for (const entry of entries) {
    entry.shown = entry.title || stem(entry.name);
    counts.set(entry.shown, (counts.get(entry.shown) ?? 0) + 1);
  }
  for (const entry of entries) if (counts.get(entry.shown) > 1) entry.shown = entry.name.replace(/\.\w+$/, "");
}

export const previewUrl = (entry, width = 128) => `v1/loras/preview?${api.query({ name: entry.name, width, at: entry.preview })}`;

/** Whether a LoRA fits a base: "fits", "other", or "unknown" where one of the two is. */
export function fits(entry, family) {
  if (!family || !entry?.family) return "unknown";
  if (entry.family === family || entry.family === "text") return "fits";
  return new Set([entry.family, family]).has("sdxl_refiner") && new Set([entry.family, family]).has("sdxl") ? "fits" : "other";
}

/** Entries that hold every word of a search, in name, title, tags or trigger words. */
export function search(entries, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return entries;
  return entries.filter((entry) => {
    entry.text ??= [entry.name, entry.title, ...entry.triggers, ...entry.tags, entry.notes].join(" ").toLowerCase();
    return words.every((word) => entry.text.includes(word));
  });
}
