// A LoRA at several strengths, side by side: everything else the same.
import { html } from "./html.js";
import { Button, Empty, IconButton, Trouble, stem } from "./controls.js";
import { Icon } from "./icons.js";
import { useCards } from "./cards.js";
import { submit } from "./draft.js";
import { STATES, pictureUrl, progress, show, signOf } from "./queue_state.js";
import { go, place, useStore } from "./state.js";

export const STRENGTHS = [0, 0.25, 0.5, 0.75, 1, 1.25];

/** Queue one drawing per strength; the address of the page that shows them. */
export async function drawStrengths(settings, name) {
  const ids = [];
  const others = settings.loras.filter((lora) => lora.name !== name);
  const at = settings.loras.findIndex((lora) => lora.name === name);
  for (const model of STRENGTHS) {
    const loras = [...others];
    loras.splice(at < 0 ? others.length : at, 0, { name, model, clip: null, on: model !== 0 });
    const card = await submit({ ...settings, loras, count: 1 });
    ids.push(card.id);
  }
  return `/strengths/${encodeURIComponent(name)}?jobs=${ids.join(",")}`;
}

function said(card, step) {
  if (card === null) return "not in the list any more";
  if (!card || card.status === "completed") return "";
  return card.status === "running" && step ? `${step.value} of ${step.max}` : STATES[card.status];
}

export function Strengths() {
  const { rest, query } = useStore(place);
  const running = useStore(progress);
  const ids = (query.jobs ?? "").split(",").filter(Boolean);
  const cards = useCards(ids);
  const name = rest[0] ?? "";
  if (!ids.length) return html`<${Empty} icon="grid" title="No strengths drawn">Open a LoRA in the library, or the receipt of a drawing, and choose Strengths.<//>`;
  return html`<header class="head"><div class="row"><${IconButton} icon="left" label="Back" onClick=${() => history.back()} /><h1>Strengths of ${stem(name)}</h1></div></header>
    <p class="soft small sub">The same seed and settings; only the strength differs. Choose a picture to go on with it.</p>
    <ul class="strengths">${ids.map((id, index) => {
      const card = cards[index];
      const step = running[id];
      return html`<li key=${id} class="stack tight">
        <button type="button" class="strength" disabled=${!card} aria-label=${`${STRENGTHS[index] ? `Strength ${STRENGTHS[index]}` : `Without ${stem(name)}`}: go on with it`} onClick=${() => {
          show(id);
          go("/draw");
        }}>
          ${card?.pictures[0] ? html`<img src=${pictureUrl(card.pictures[0], 512)} alt=${`Strength ${STRENGTHS[index]}`} />` : step?.preview ? html`<img src=${step.preview} alt="" />` : html`<span class="recent-state"><${Icon} name=${card ? signOf(card) : "clock"} /></span>`}
        </button>
        <span class="row between small numbers"><strong>${STRENGTHS[index] ? STRENGTHS[index].toFixed(2) : "Without"}</strong><span class="soft">${said(card, running[id])}</span></span>
        ${card?.trouble && html`<${Trouble} trouble=${card.trouble} />`}
      </li>`;
    })}</ul>`;
}
