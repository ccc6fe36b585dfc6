// What a LoRA did, in words.
import { html } from "./html.js";
import { Button, stem } from "./controls.js";

const share = (number) => `${number >= 0.1 ? Math.round(100 * number) : (100 * number).toFixed(1)}\u00a0%`;

/** "210 of 210 modules · changes the model by 14 %" */
export function receiptLine(receipt) {
  const parts = [`${receipt.matched} of ${receipt.total} modules`];
  const model = receipt.effects?.find((effect) => effect.component === "model") ?? receipt.effects?.[0];
  if (model) parts.push(`changes ${model.component === "clip" ? "the text encoder" : "the model"} by ${share(model.relative)}`);
  return parts.join(" · ");
}

const NAMES = { model: "Model", clip: "Text encoders" };

export function Receipts({ receipts, settings, onCompare, onStrengths }) {
  const loras = receipts.filter((receipt) => receipt.components);
  if (!loras.length) return null;
  return html`<section class="stack" aria-label="LoRA receipts"><h2>What the LoRAs did</h2>
    <ul class="stack">${loras.map((receipt, index) => html`<li class="receipt" key=${index}>
      <div class="row between wrap"><span class="grow clip lora-name">${stem(receipt.name ?? receipt.file ?? "LoRA")}</span>
        <span class=${`tag ${receipt.complete ? "good" : "warn"}`}>${receipt.complete ? "Fully placed" : `${receipt.total - receipt.matched} not placed`}</span></div>
      <p class="small soft">${receiptLine(receipt)} · strength ${receipt.strength_model ?? receipt.strength_clip ?? ""}</p>
      ${receipt.warnings?.map((warning) => html`<p class="small warn-text">${warning}</p>`)}
      <div class="row wrap">
        ${onCompare && settings?.loras.some((lora) => lora.name === receipt.name) && html`<${Button} kind="small" icon="compare" onClick=${() => onCompare(receipt.name)}>With and without<//>`}
        ${onStrengths && settings && html`<${Button} kind="small" icon="grid" onClick=${() => onStrengths(receipt.name)}>Strengths<//>`}
      </div>
      <details><summary>The whole receipt</summary><${Whole} receipt=${receipt} /></details>
    </li>`)}</ul></section>`;
}

function Whole({ receipt }) {
  const facts = [
    ...receipt.components.map((part) => [NAMES[part.component] ?? part.component, `${part.matched} of ${part.total} modules, ${part.weights} weights`]),
    ...(receipt.effects ?? []).map((effect) => [`Change of ${(NAMES[effect.component] ?? effect.component).toLowerCase()}`, share(effect.relative)]),
    ["Made for", receipt.base],
    ["Written by", receipt.trainer],
    ["Names", receipt.dialect],
    ["Algebra", Object.entries(receipt.algorithms).map(([name, count]) => `${name} ×${count}`).join(", ")],
    ["Scale", receipt.alpha],
    ...receipt.ignored.map((entry) => ["Left out by design", `${entry.modules.length}: ${entry.reason}`]),
    receipt.unplaced.length > 0 && ["Without a place", `${receipt.unplaced.slice(0, 4).join(", ")}${receipt.unplaced.length > 4 ? " …" : ""}`],
    ...receipt.rejected.slice(0, 4).map((one) => ["Does not fit", `${one.module}: ${one.reason}`]),
    receipt.hashes?.autov2 && ["Hash (AutoV2)", receipt.hashes.autov2],
  ].filter((fact) => fact && fact[1]);
  return html`<${Facts} facts=${facts} />`;
}

export const Facts = ({ facts }) => html`<dl class="facts">${facts.map(([name, value], index) => html`<div key=${index}><dt>${name}</dt><dd class="breaks">${value}</dd></div>`)}</dl>`;
