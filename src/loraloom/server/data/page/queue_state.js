// The queue as it stands, and as it changes: one stream of events for every view.
import * as api from "./api.js";
import { Store, spoken, tell } from "./state.js";

export const queue = new Store(null);
export const progress = new Store({});
/** Counts what the server has told of trainings. */
export const happened = new Store(0);
/** Why the server is not heard, in words; "" while it is. */
export const lost = new Store("");
export const STATES = { pending: "waiting", running: "being drawn", completed: "done", failed: "failed", cancelled: "cancelled", quarantined: "put aside" };

/** The icon that stands for a card without a picture. */
export const signOf = (card) => ({ pending: "clock", running: "draw", completed: "check", cancelled: "close" })[card.status] ?? "warning";

/** The job that the drawing desk shows; null: the latest. */
export const shownJob = new Store(null);
export const show = (id) => shownJob.set(id);

/** Events after which cards are read again. */
const CHANGES = ["queue", "job", "completed", "failed", "cancelled", "requeued", "quarantined", "reset"];
const MIN_MILLISECONDS = 150;
const AGAIN_MILLISECONDS = 3000;
const LOST = "The connection to the server is lost; trying again … If it was stopped, start loraloom serve again.";
let asking = false;
let again = false;

export async function refresh() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  try {
    const found = await api.get("v1/cards");
    announce(queue.value, found);
    queue.set(found);
    if (stream.readyState === EventSource.OPEN) lost.set("");
  } catch (error) {
    lost.set(error.status ? error.message : LOST);
  } finally {
    await new Promise((done) => setTimeout(done, MIN_MILLISECONDS));
    asking = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}

function announce(before, after) {
  if (!before) return;
  const known = new Set(before.finished.map((card) => card.id));
  for (const card of after.finished) {
    if (known.has(card.id) || card.created < (before.finished[0]?.created ?? 0) - 86400) continue;
    if (card.status === "completed") spoken.set(`Finished: ${card.title || "a workflow"}`);
    if (card.status === "failed" || card.status === "quarantined") tell(`${card.title || "A workflow"} failed. ${card.trouble?.what ?? ""}`, { bad: true });
    break;
  }
}

export const cardOf = (state, id) => state && [...state.running, ...state.waiting, ...state.finished].find((card) => card.id === id);
export const isOver = (card) => card && !["pending", "running"].includes(card.status);

let stream = null;

export function follow() {
  stream = new EventSource("v1/events?previews=true");
  stream.addEventListener("open", () => {
    lost.set("");
    refresh();
  });
  stream.addEventListener("error", () => {
    lost.set(LOST);
    if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    refresh(); // says why, where the server answers
    setTimeout(follow, AGAIN_MILLISECONDS);
  });
  for (const kind of CHANGES) stream.addEventListener(kind, refresh);
  for (const kind of ["training", "reset"]) stream.addEventListener(kind, () => happened.set((count) => count + 1));
  stream.addEventListener("progress", (event) => {
    const said = JSON.parse(event.data);
    const preview = said.preview ? `data:image/jpeg;base64,${said.preview}` : progress.value[said.job]?.preview;
    progress.set({ [said.job]: { value: said.value, max: said.max, preview } });
  });
}

export const pictureUrl = (file, width) =>
  width ? `v1/pictures/thumbnail?${api.query({ name: file.filename, subfolder: file.subfolder, type: file.type, width })}` : file.url.replace(/^\//, "");
