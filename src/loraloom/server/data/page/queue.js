// The queue: what runs, what waits and in which order, what is over.
import { html } from "./html.js";
import { Button, Empty, IconButton, Trouble, ago, stem } from "./controls.js";
import { Icon } from "./icons.js";
import * as api from "./api.js";
import { use } from "./draft.js";
import { STATES, pictureUrl, progress, queue, refresh, show, signOf } from "./queue_state.js";
import { attempt, go, tell, useStore } from "./state.js";

const act = async (path, body) => {
  await attempt(() => api.post(path, body));
  refresh();
};

export function Queue() {
  const state = useStore(queue);
  if (!state) return html`<p class="soft">Asking the server …</p>`;
  const nothing = !state.running.length && !state.waiting.length && !state.finished.length;
  return html`<div class="narrow">
    <header class="head"><div><h1>Queue</h1><p class="small soft" role="status">${state.running.length ? "Drawing" : state.paused ? "Paused" : state.waiting_total ? "Getting ready" : "Idle"}, ${state.waiting_total} waiting</p></div>
      <div class="row wrap">
        <${Button} icon=${state.paused ? "play" : "pause"} aria-pressed=${state.paused} onClick=${() => act(`v1/queue/${state.paused ? "resume" : "pause"}`)}>${state.paused ? "Resume" : "Pause"}<//>
        <${Button} icon="close" disabled=${!state.waiting.length} onClick=${() => act("v1/cards/cancel")}>Cancel all waiting<//>
        <${Button} icon="trash" disabled=${!state.finished.length} onClick=${() => act("v1/cards/clear")}>Clear finished<//>
      </div></header>
    ${state.worker.error && html`<div class="callout" role="alert"><strong>The program that draws could not start.</strong><p class="small breaks">${state.worker.error}</p></div>`}
    ${state.paused && html`<div class="callout warn small">Paused: what is being drawn will be finished; nothing else starts until you resume.</div>`}
    ${nothing && html`<${Empty} icon="queue" title="Nothing in the queue">What you draw is listed here with its prompt.<//>`}
    <${Part} title="Drawing now" cards=${state.running} />
    <${Part} title="Waiting" cards=${state.waiting} more=${state.waiting_total - state.waiting.length} />
    <${Part} title="Finished" cards=${state.finished} more=${state.finished_total - state.finished.length} />
  </div>`;
}

function Part({ title, cards, more = 0 }) {
  if (!cards.length) return null;
  return html`<section class="queue-part stack" aria-label=${title}><h2>${title}</h2>
    <ol class="stack">${cards.map((card, index) => html`<${QueueRow} key=${card.id} card=${card} index=${index} cards=${cards} />`)}</ol>
    ${more > 0 && html`<p class="small soft">and ${more.toLocaleString()} more</p>`}</section>`;
}

/** A number between two neighbours puts a job between them. */
function placeAt(cards, from, to) {
  const others = cards.filter((_, index) => index !== from);
  const before = others[to - 1];
  const after = others[to];
  const priority = (after ?? before).priority;
  if (!before) return { number: after.number - 1, priority };
  if (!after) return { number: before.number + 1, priority };
  if (before.priority !== after.priority) return { number: before.number + 1, priority: before.priority };
  return { number: (before.number + after.number) / 2, priority };
}

/** "waiting · just now · 192 × 192, seed 7 · ink 0.5": what tells drawings of one prompt apart. */
function about(card, step) {
  const s = card.settings;
  const loras = (s?.loras ?? []).filter((lora) => lora.on).map((lora) => `${stem(lora.name)} ${lora.model}`);
  return [STATES[card.status], step?.max > 1 && `step ${step.value} of ${step.max}`, ago(card.finished ?? card.started ?? card.created), s && `${s.width} × ${s.height}, seed ${s.seed}`, loras.join(", ")].filter(Boolean).join(" · ");
}

function QueueRow({ card, index, cards }) {
  const now = useStore(progress, (all) => all[card.id]) ?? card.step;
  const move = async (to) => {
    await attempt(() => api.patch(`v1/jobs/${card.id}`, placeAt(cards, index, to)));
    refresh();
  };
  const name = card.title || "A workflow";
  const waits = card.status === "pending";
  const runs = card.status === "running";
  const failed = ["failed", "cancelled", "quarantined"].includes(card.status);
  return html`<li class="job panel">
    <button type="button" class=${`thumb big ${card.trouble ? "bad" : ""}`} aria-label=${`Show: ${name}`} onClick=${() => {
      show(card.id);
      go("/draw");
    }}>${card.pictures[0] ? html`<img src=${pictureUrl(card.pictures[0], 128)} alt="" loading="lazy" />` : html`<${Icon} name=${signOf(card)} />`}</button>
    <div class="grow stack tight">
      <p class="job-title">${name}</p>
      <p class="small soft numbers breaks">${about(card, runs && now)}</p>
      ${runs && html`<div class=${`bar ${now ? "" : "unknown"}`} role="progressbar" aria-label=${`Progress of ${name}`} aria-valuemin="0" aria-valuemax=${now?.max ?? 1} aria-valuenow=${now?.value ?? 0}><div style=${{ "--share": now ? `${(100 * now.value) / now.max}%` : "0%" }}></div></div>`}
      ${card.trouble && html`<${Trouble} trouble=${card.trouble} />`}
    </div>
    <div class="job-actions">
      ${waits && html`<${IconButton} icon="first" label=${`Draw next: ${name}`} off=${index === 0} onClick=${() => move(0)} />
        <${IconButton} icon="up" label=${`Earlier: ${name}`} off=${index === 0} onClick=${() => move(index - 1)} />
        <${IconButton} icon="down" label=${`Later: ${name}`} off=${index === cards.length - 1} onClick=${() => move(index + 1)} />`}
      ${(waits || runs) && html`<${IconButton} icon="close" label=${`Cancel: ${name}`} onClick=${() => act(`v1/jobs/${card.id}/cancel`)} />`}
      ${failed && html`<${IconButton} icon="again" label=${`Retry: ${name}`} onClick=${() => act(`v1/jobs/${card.id}/retry`)} />`}
      ${!waits && !runs && card.settings && html`<${IconButton} icon="edit" label=${`Use its settings: ${name}`} onClick=${() => {
        use(card.settings);
        go("/draw");
      }} />`}
      ${!waits && !runs && html`<${IconButton} icon="trash" label=${`Remove from the list: ${name}`} onClick=${async () => {
        await attempt(() => api.remove(`v1/jobs/${card.id}`));
        tell("Removed from the list. Its pictures stay in the gallery.");
        refresh();
      }} />`}
    </div></li>`;
}
