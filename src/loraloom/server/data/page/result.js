// One job's picture: as it comes about, done, or why it is not.
import { html, useEffect, useState } from "./html.js";
import { Button, Compare, CompareFrame, Empty, Sheet, Trouble, ago, stem } from "./controls.js";
import { Icon } from "./icons.js";
import { again, use, vary, without } from "./draft.js";
import { cardOf, isOver, pictureUrl, progress, queue, refresh, signOf } from "./queue_state.js";
import { Receipts } from "./receipts.js";
import { attempt, go, spoken, useStore } from "./state.js";
import { drawStrengths } from "./strengths.js";
import * as api from "./api.js";

export function Result({ card, onShow }) {
  const [chosen, setChosen] = useState(0);
  const [comparing, setComparing] = useState(null);
  useEffect(() => setChosen(0), [card?.id]);
  if (!card) {
    return html`<div class="stage"><${Empty} icon="picture" title="Nothing drawn yet">Write a prompt and press Draw. Workflows, pictures that carry one, and LoRAs can be dropped anywhere on this page.<//></div>`;
  }
  const file = card.pictures[Math.min(chosen, card.pictures.length - 1)];
  const start = async (work) => {
    const made = await attempt(work);
    if (made) onShow(made.id);
  };
  const compare = async (name) => {
    onShow(card.id); // the newest drawing is shown otherwise, which the one without is in a moment
    const made = await attempt(() => without(card.settings, name));
    if (made) setComparing({ job: made.id, name, file, size: card.settings });
  };
  return html`<article class="result stack loose" aria-label="Result">
    <${Stage} card=${card} file=${file} />
    ${card.pictures.length > 1 && html`<ul class="strip" aria-label="Pictures of this drawing">${card.pictures.map((one, index) => html`<li key=${index}>
      <button type="button" aria-current=${index === chosen ? "true" : undefined} onClick=${() => setChosen(index)}><img src=${pictureUrl(one, 128)} alt=${`Picture ${index + 1} of ${card.pictures.length}`} /></button></li>`)}</ul>`}
    <div class="stack">
      <p class="prompt-line">${card.title || "A workflow without a prompt"}</p>
      <p class="small soft numbers">${summary(card)}</p>
    </div>
    ${card.trouble && html`<${Trouble} trouble=${card.trouble}><div class="row"><${Button} kind="small" icon="again" onClick=${() => start(() => api.post(`v1/jobs/${card.id}/retry`))}>Retry<//></div><//>`}
    ${card.warnings.map((warning) => html`<div class="callout warn small">${warning}</div>`)}
    <div class="row wrap">
      ${card.settings && html`<${Button} icon="again" onClick=${() => start(() => again(card.settings))}>Again<//>`}
      ${card.settings && file && html`<${Button} icon="vary" onClick=${() => start(() => vary(card.settings, file))}>Vary<//>`}
      ${card.settings && html`<${Button} icon="edit" onClick=${() => use(card.settings)}>Use settings<//>`}
      ${file && html`<a class="button" href=${file.url.replace(/^\//, "")} download=${file.filename}><${Icon} name="download" />Save</a>`}
      ${!isOver(card) && html`<${Button} icon="stop" kind="danger" onClick=${() => attempt(() => api.post(`v1/jobs/${card.id}/cancel`))}>Cancel<//>`}
    </div>
    <${Receipts} receipts=${card.receipts} settings=${card.settings} onCompare=${file && compare}
      onStrengths=${async (name) => {
        const made = await attempt(() => drawStrengths(card.settings, name));
        if (made) go(made);
      }} />
    ${comparing && html`<${WithAndWithout} ...${comparing} onClose=${() => setComparing(null)} />`}
  </article>`;
}

function summary(card) {
  const s = card.settings;
  const took = card.status === "completed" && card.started ? `${(card.finished - card.started).toFixed(1)} s` : "";
  const parts = s ? [`${s.width} × ${s.height}`, `${s.steps} steps`, `CFG ${s.cfg}`, `${s.sampler}, ${s.scheduler}`, `seed ${s.seed}`] : [];
  return [...parts, took, ago(card.created)].filter(Boolean).join(" · ");
}

const SMALL = 256;
const kindOf = (s) => (s && s.width <= SMALL ? "small-picture" : "");
/** What draw.css makes room of: as much as the picture will take, so that nothing moves when it is there. */
const room = (s) => (s ? { "--ratio": s.width / s.height, "--most": `${s.width}px` } : {});

function Stage({ card, file }) {
  const now = useStore(progress, (all) => all[card.id]);
  const paused = useStore(queue, (state) => state?.paused);
  const broken = useStore(queue, (state) => state?.worker.error);
  const next = useStore(queue, (state) => !state?.running.length && state?.waiting[0]?.id === card.id);
  const s = card.settings;
  if (file) return html`<div class="stage"><a href=${file.url.replace(/^\//, "")} target="_blank" rel="noopener"><img class=${`picture ${kindOf(s)}`} src=${file.url.replace(/^\//, "")} alt=${card.title || "The picture"} style=${room(s)} width=${s?.width} height=${s?.height} /></a></div>`;
  if (isOver(card)) return html`<div class="stage"><${Empty} icon=${signOf(card)} title=${card.status === "completed" ? "Done, without a picture" : card.status === "cancelled" ? "Cancelled" : "No picture"} /></div>`;
  const step = now ?? card.step;
  const share = step?.max ? `${(100 * step.value) / step.max}%` : "0%";
  const words = card.status === "pending" ? (paused ? "The queue is paused" : next ? "Getting ready" : "Waiting for its turn") : step?.max > 1 ? `Step ${step.value} of ${step.max}` : "Getting ready";
  return html`<div class="stage">
    ${now?.preview ? html`<img class=${`picture preview ${kindOf(s)}`} src=${now.preview} alt="Preview of the unfinished picture" style=${room(s)} />` : html`<div class=${`picture waiting ${kindOf(s)}`} style=${room(s)}><${Icon} name=${signOf(card)} /></div>`}
    <div class="stage-foot stack tight"><div class="row between small numbers"><span>${words}</span><span class="soft">${step?.max > 1 ? `${Math.round((100 * step.value) / step.max)} %` : ""}</span></div>
      ${card.status === "pending" && paused && html`<${Button} kind="small" icon="play" onClick=${() => attempt(() => api.post("v1/queue/resume"))}>Resume the queue<//>`}
      ${broken && html`<p class="small warn-text breaks">The program that draws could not start: ${broken}</p>`}
      <div class=${`bar ${card.status === "running" && !step ? "unknown" : ""}`} role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax=${step?.max ?? 1} aria-valuenow=${step?.value ?? 0}><div style=${{ "--share": share }}></div></div></div>
  </div>`;
}

/** The picture as it is, and the same without one LoRA, once that is drawn. */
function WithAndWithout({ job, name, file, size, onClose }) {
  const card = useStore(queue, (state) => cardOf(state, job));
  const other = card?.pictures[0];
  useEffect(() => {
    if (other) spoken.set("The picture without the LoRA is there.");
    else refresh();
  }, [other?.filename]);
  return html`<${Sheet} wide title=${`With and without ${stem(name)}`} onClose=${onClose}>
    ${other
      ? html`<${CompareFrame} size=${size}><${Compare} left=${file.url.replace(/^\//, "")} right=${other.url.replace(/^\//, "")} leftName="With" rightName="Without" /><//>`
      : card?.trouble ? html`<${Trouble} trouble=${card.trouble} />` : html`<${CompareFrame} size=${size}><${Stage} card=${card ?? { id: job, status: "pending", settings: size, pictures: [] }} /><//>`}
    <p class="small soft">The same seed and settings. Move the seam with the mouse, a finger, or the arrow keys.</p>
  <//>`;
}
