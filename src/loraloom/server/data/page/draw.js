// The drawing desk: settings, the picture, and what came before.
import { html, useEffect, useRef, useState } from "./html.js";
import { Button, Check, IconButton, NumberField, Select, Slider, TextArea, baseLabel } from "./controls.js";
import { Icon } from "./icons.js";
import * as api from "./api.js";
import { useCards } from "./cards.js";
import { change, chooseBase, draft, drawDraft, freshSeed } from "./draft.js";
import { library, loadLibrary } from "./library_state.js";
import { LoraStack } from "./lora_stack.js";
import { STATES, pictureUrl, queue, show, shownJob, signOf } from "./queue_state.js";
import { Result } from "./result.js";
import { attempt, choices, loadChoices, tell, useStore } from "./state.js";
import { openFiles } from "./drop.js";
import { WordChip } from "./words.js";
import { WorkflowDesk, openWorkflowFile, workflows } from "./workflow_form.js";

export function Draw() {
  const cards = useStore(queue);
  const chosen = useStore(shownJob);
  const opened = useStore(workflows);
  const id = chosen ?? cards?.running[0]?.id ?? cards?.finished.find((card) => card.pictures.length)?.id;
  const [card] = useCards(id ? [id] : []);
  useEffect(() => {
    const paste = (event) => {
      const text = event.clipboardData?.getData("text/plain") ?? "";
      if (!/^\s*\{/.test(text) || /^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName)) return;
      openWorkflowFile(new File([text], "what was pasted"));
    };
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  }, []);
  return html`<div class="desk">
    <h1 class="hidden-text">Draw</h1>
    <div class="desk-form">${opened ? html`<${WorkflowDesk} onQueued=${(job) => show(job)} />` : html`<${Form} receipts=${card?.receipts} />`}</div>
    <div class="desk-result"><${Result} card=${card} onShow=${show} /></div>
    <aside class="desk-recent" aria-label="Recent"><${Recent} cards=${cards} current=${id} /></aside>
  </div>`;
}

function Form({ receipts }) {
  const d = useStore(draft);
  const found = useStore(choices);
  const [busy, setBusy] = useState(false);
  const file = useRef(null);
  const run = async () => {
    setBusy(true);
    const card = await attempt(drawDraft);
    setBusy(false);
    if (!card) return;
    show(card.id);
    document.querySelector(".desk-result").scrollIntoView({ block: "nearest" });
  };
  if (!found) return html`<div class="form"><p class="form-scroll soft">Reading the folders of models …</p></div>`;
  return html`<form class="form" onSubmit=${(e) => {
    e.preventDefault();
    run();
  }} onKeyDown=${(e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      run();
    }
  }}>
    <div class="form-scroll">
      ${found.bases.length === 0 && html`<${NoBase} folder=${found.folder} />`}
      <${TextArea} label="Prompt" tall value=${d.prompt} onChange=${(prompt) => change({ prompt })} placeholder="What should the picture show?" />
      <${Words} prompt=${d.prompt} loras=${d.loras} />
      <${TextArea} label="Negative prompt" value=${d.negative} onChange=${(negative) => change({ negative })} placeholder="What it should not show" />
      <${BaseFields} d=${d} found=${found} />
      <${LoraStack} receipts=${receipts} />
      <${SizeFields} d=${d} />
      <${SamplingFields} d=${d} found=${found} />
    </div>
    <div class="form-foot">
      <button class="button primary large grow" disabled=${busy || !d.base}><${Icon} name="draw" />Draw<kbd>Ctrl ↵</kbd></button>
      <${IconButton} icon="file" label="Open a file: a workflow (JSON, a picture that carries one, a page) or a LoRA" onClick=${() => file.current.click()} />
      <input ref=${file} type="file" class="hidden-text" tabindex="-1" aria-label="Workflow or LoRA file" accept=".json,.png,.webp,.jpg,.jpeg,.html,.htm,.md,.txt,.safetensors"
        onChange=${(e) => {
          openFiles(e.target.files);
          e.target.value = "";
        }} />
    </div>
  </form>`;
}

/** Nothing to draw with yet: how to come by it. */
function NoBase({ folder }) {
  const [busy, setBusy] = useState(false);
  const demo = async () => {
    setBusy(true);
    const done = await attempt(async () => {
      await api.post("v1/draw/demo");
      await loadChoices();
      await loadLibrary(true);
      return true;
    });
    setBusy(false);
    if (!done) return;
    change({ prompt: draft.value.prompt || "a red rose" });
    tell("The small model is there. It knows 119 things: try a cat, a pizza, a rocket, and a LoRA with it.", { seconds: 12 });
  };
  return html`<div class="callout warn" role="region" aria-label="No base model"><strong>There is no base model yet.</strong>
    <p class="small breaks">Put one (.safetensors) into ${folder}/checkpoints, or start loraloom serve with --models and the folder of your models.</p>
    <p class="small">Or begin with the small model that comes with Loraloom: pictures of 192 × 192 pixels, and two LoRAs.</p>
    <div class="row wrap"><${Button} kind="small" icon="play" disabled=${busy} onClick=${demo}>Use the small model<//>
      <${Button} kind="small" icon="again" onClick=${() => attempt(loadChoices)}>Look again<//></div></div>`;
}

/** Trigger words of the LoRAs in use: a click puts one into the prompt, or takes it out. */
function Words({ prompt, loras }) {
  const known = useStore(library);
  const words = [...new Set(loras.filter((lora) => lora.on).flatMap((lora) => (known.byName.get(lora.name)?.triggers ?? []).slice(0, 12)))];
  if (!words.length) return null;
  return html`<div class="stack tight" role="group" aria-label="Trigger words"><h3>Trigger words</h3>
    <div class="row wrap">${words.map((word) => html`<${WordChip} key=${word} word=${word} prompt=${prompt} />`)}</div></div>`;
}

function BaseFields({ d, found }) {
  const key = (base) => `${base.kind}/${base.name}`;
  const set = (index, name) => change({ text_encoders: d.text_encoders.map((now, i) => (i === index ? name : now)) });
  return html`<div class="stack">
    <${Select} label="Base model" value=${d.base && `${d.base_kind}/${d.base}`} empty=${found.bases.length ? undefined : "None yet"} options=${found.bases.map((base) => ({ value: key(base), text: baseLabel(base) }))}
      onChange=${(value) => chooseBase(found.bases.find((base) => key(base) === value))} />
    ${d.base_kind === "diffusion_models" && d.text_encoders.map((name, index) => html`<${Select} key=${index} label=${`Text encoder ${index + 1}`} value=${name} empty="Choose one" options=${found.text_encoders} onChange=${(chosen) => set(index, chosen)} />`)}
    ${(d.base_kind === "diffusion_models" || found.vaes.length > 0) && html`<${Select} label="VAE" value=${d.vae} empty=${d.base_kind === "checkpoints" ? "The base model's own" : "Choose one"} options=${found.vaes} onChange=${(vae) => change({ vae })} />`}
  </div>`;
}

const SHAPES = [["Square", 1, 1], ["Portrait", 3, 4], ["Tall", 9, 16], ["Landscape", 4, 3], ["Wide", 16, 9]];
const sized = (area, across, down, step = 8) => {
  const unit = Math.sqrt(area / (across * down));
  return [across, down].map((part) => Math.max(step, Math.round((unit * part) / step) * step));
};

function SizeFields({ d }) {
  const area = d.width * d.height;
  return html`<section class="stack" aria-label="Size"><div class="row between"><h2>Size</h2><span class="small soft numbers">${((area / 1e6) || 0).toFixed(area < 1e5 ? 3 : 2)} megapixels</span></div>
    <div class="row wrap" role="group" aria-label="Shape">${SHAPES.map(([name, across, down]) => {
      const [width, height] = sized(area, across, down);
      const on = Math.abs(d.width / d.height - across / down) < 0.04;
      return html`<button type="button" class="chip" key=${name} aria-pressed=${on} onClick=${() => change({ width, height })}>${name}</button>`;
    })}</div>
    <div class="pair">
      <label><span class="label">Width</span><${NumberField} wide whole label="Width" value=${d.width} low=${16} high=${16384} step=${8} onChange=${(width) => change({ width })} /></label>
      <${IconButton} icon="swap" label="Swap width and height" onClick=${() => change({ width: d.height, height: d.width })} />
      <label><span class="label">Height</span><${NumberField} wide whole label="Height" value=${d.height} low=${16} high=${16384} step=${8} onChange=${(height) => change({ height })} /></label>
    </div></section>`;
}

function SamplingFields({ d, found }) {
  return html`<section class="stack" aria-label="Sampling"><h2>Sampling</h2>
    <${Slider} label="Steps" value=${d.steps} low=${1} high=${60} whole numberHigh=${10000} onChange=${(steps) => change({ steps })} />
    <${Slider} label="CFG" value=${d.cfg} low=${1} high=${15} step=${0.1} numberLow=${0} numberHigh=${100} onChange=${(cfg) => change({ cfg })} />
    ${["flux", "flux2"].includes(d.family) && html`<${Slider} label="Guidance" value=${d.guidance} low=${1} high=${8} step=${0.1} numberLow=${0} numberHigh=${100} onChange=${(guidance) => change({ guidance })} />`}
    <div class="two">
      <${Select} label="Sampler" value=${d.sampler} options=${found.samplers} onChange=${(sampler) => change({ sampler })} />
      <${Select} label="Scheduler" value=${d.scheduler} options=${found.schedulers} onChange=${(scheduler) => change({ scheduler })} />
    </div>
    <div class="pair seed">
      <label class="grow"><span class="label">Seed</span><${NumberField} wide whole label="Seed" value=${d.seed} low=${0} onChange=${(seed) => change({ seed, new_seed: false })} /></label>
      <${IconButton} icon="dice" label="Roll a seed" onClick=${() => change({ seed: freshSeed() })} />
    </div>
    <div class="row wrap between">
      <${Check} label="A new seed for each drawing" on=${d.new_seed} onChange=${(new_seed) => change({ new_seed })} />
      <label class="row small">Pictures at once <${NumberField} whole label="Pictures at once" value=${d.count} low=${1} high=${64} onChange=${(count) => change({ count })} /></label>
    </div>
    ${d.start && html`<div class="row between"><span class="small clip">Begins from ${d.start}</span><${Button} kind="small" icon="close" onClick=${() => change({ start: "", denoise: 1 })}>Begin from noise<//></div>
      <${Slider} label="How much is redrawn" value=${d.denoise} low=${0} high=${1} step=${0.05} numberHigh=${1} onChange=${(denoise) => change({ denoise })} />`}
  </section>`;
}

function Recent({ cards, current }) {
  if (!cards) return null;
  const shown = [...cards.running, ...cards.waiting.slice(0, 6), ...cards.finished.slice(0, 24)];
  return html`<h2 class="recent-title">Recent</h2>
    ${shown.length === 0 && html`<p class="small soft">Your drawings will line up here.</p>`}
    <ul class="recent">${shown.map((card) => html`<li key=${card.id}>
      <button type="button" class=${`recent-card ${card.status}`} aria-current=${card.id === current ? "true" : undefined} title=${card.title || "A workflow"} onClick=${() => show(card.id)}>
        ${card.pictures[0] ? html`<img src=${pictureUrl(card.pictures[0], 192)} alt="" loading="lazy" />` : html`<span class="recent-state"><${Icon} name=${signOf(card)} /></span>`}
        <span class="hidden-text">${card.title || "A workflow"}, ${STATES[card.status]}</span>
      </button></li>`)}</ul>`;
}
