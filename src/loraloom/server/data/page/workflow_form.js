// Any workflow, as a form of its values.
import { html, useState } from "./html.js";
import { Button, Check, IconButton, NumberField, Select, Slider, TextArea, TextField } from "./controls.js";
import { Icon } from "./icons.js";
import * as api from "./api.js";
import { freshSeed, use } from "./draft.js";
import { refresh } from "./queue_state.js";
import { Store, attempt, go, useStore } from "./state.js";

export const workflows = new Store(null);

/** Read a file and open what workflows it holds on the desk. */
export async function openWorkflowFile(file) {
  const found = await attempt(() => api.upload(`v1/workflows?${api.query({ name: file.name })}`, file));
  if (found) openWorkflows(found.workflows, file.name);
}
export function openWorkflows(found, name) {
  workflows.set({ name, found, chosen: 0 });
  go("/draw");
}
const setValue = (node, input, value) =>
  workflows.set((now) => {
    const found = [...now.found];
    const form = found[now.chosen];
    const entry = form.prompt[node];
    const prompt = { ...form.prompt, [node]: { ...entry, inputs: { ...entry.inputs, [input]: value } } };
    const problems = form.problems.filter((problem) => problem.node !== node || problem.input !== input);
    found[now.chosen] = { ...form, prompt, problems };
    return { ...now, found };
  });

export function WorkflowDesk({ onQueued }) {
  const opened = useStore(workflows);
  const [fresh, setFresh] = useState(true);
  const form = opened.found[opened.chosen];
  const many = opened.found.length > 1;
  const run = async () => {
    const job = await attempt(() => {
      if (fresh) for (const section of form.sections) for (const field of section.fields) if (field.seed) setValue(section.node, field.input, freshSeed());
      return api.post("v1/jobs", { workflow: workflows.value.found[opened.chosen].prompt, previews: true });
    });
    if (job) {
      refresh();
      onQueued(job.id);
    }
  };
  return html`<form class="form" aria-label="Workflow" onSubmit=${(e) => {
    e.preventDefault();
    run();
  }}>
    <div class="form-scroll">
      <div class="row between"><div class="grow"><h2 class="clip">${form.title || opened.name}</h2><p class="tiny soft clip">Workflow from ${opened.name}</p></div>
        <${IconButton} icon="close" label="Close this workflow" onClick=${() => workflows.set(null)} /></div>
      ${many && html`<${Select} label=${`${opened.found.length} workflows in this file`} value=${opened.chosen} options=${opened.found.map((one, index) => ({ value: index, text: one.title || `Workflow ${index + 1}` }))} onChange=${(chosen) => workflows.set((now) => ({ ...now, chosen }))} />`}
      ${form.damage && html`<div class="callout" role="alert"><strong>This workflow cannot be read.</strong><p class="small breaks">${form.damage}</p></div>`}
      ${form.problems.length > 0 && html`<div class="callout warn"><strong>${form.problems.length === 1 ? "One thing to set right first" : `${form.problems.length} things to set right first`}</strong><ul class="stack tight small">${form.problems.slice(0, 12).map((problem, index) => html`<li key=${index} class="breaks">${problem.message}${problem.url && html` It comes from <a href=${problem.url} target="_blank" rel="noopener noreferrer">${problem.url}</a>.`}</li>`)}</ul></div>`}
      ${form.settings && html`<${Button} kind="small" icon="edit" onClick=${() => {
        use(form.settings);
        workflows.set(null);
      }}>Open in the plain form<//>`}
      ${form.sections.map((section) => html`<${Section} key=${`${opened.chosen}/${section.node}`} section=${section} prompt=${form.prompt} problems=${form.problems.filter((problem) => problem.node === section.node)} />`)}
    </div>
    <div class="form-foot"><button class="button primary large grow" disabled=${Boolean(form.damage)}><${Icon} name="play" />Run workflow</button>
      <${Check} label="New seed" on=${fresh} onChange=${setFresh} /></div>
  </form>`;
}

const PLAIN = new Set(["CLIPTextEncode", "LoraLoader", "LoraLoaderModelOnly", "EmptyLatentImage", "EmptySD3LatentImage", "KSampler", "CheckpointLoaderSimple", "UNETLoader"]);

function Section({ section, prompt, problems }) {
  const title = section.title === section.class_type ? section.title : `${section.title}`;
  return html`<details class="section" open=${PLAIN.has(section.class_type) || problems.length > 0}>
    <summary><span class="grow clip">${title}</span>${!section.known && html`<span class="tag bad">unknown class</span>`}${problems.length > 0 && html`<span class="tag warn">check</span>`}<span class="tiny soft">${section.class_type !== title ? section.class_type : ""}</span></summary>
    <div class="stack">${section.fields.map((field) => html`<${Value} key=${field.input} field=${field} node=${section.node} value=${prompt[section.node].inputs[field.input] ?? field.value} />`)}</div>
  </details>`;
}

function Value({ field, node, value }) {
  const label = field.input.replaceAll("_", " ");
  const set = (next) => setValue(node, field.input, next);
  if (field.kind === "yes_no") return html`<${Check} label=${label} on=${value === true} onChange=${set} />`;
  if (field.kind === "choice") return html`<${Select} label=${label} value=${value} options=${field.choices} onChange=${set} />`;
  if (field.kind === "text") return field.multiline ? html`<${TextArea} label=${label} value=${String(value)} onChange=${set} />` : html`<${TextField} label=${label} value=${String(value)} onChange=${set} />`;
  const whole = field.kind === "whole";
  const near = field.low !== null && field.high !== null && field.high - field.low <= 200;
  if (near || /strength|denoise/.test(field.input)) {
    const low = near ? field.low : /strength/.test(field.input) ? -1 : 0;
    return html`<${Slider} label=${label} value=${value} low=${low} high=${near ? field.high : /strength/.test(field.input) ? 2 : 1} step=${whole ? 1 : 0.01} whole=${whole} numberLow=${field.low ?? undefined} numberHigh=${field.high ?? undefined} onChange=${set} />`;
  }
  return html`<label class="row between small"><span>${label}</span><${NumberField} label=${label} value=${value} whole=${whole} low=${field.low ?? undefined} high=${field.seed ? undefined : field.high ?? undefined} step=${whole ? 1 : 0.1} onChange=${set} /></label>`;
}
