// Training: from a folder of pictures to a LoRA in the library.
import { html, useEffect, useRef, useState } from "./html.js";
import { Button, Check, Empty, IconButton, NumberField, Select, Sheet, TextArea, TextField, ago, baseLabel, stem } from "./controls.js";
import { Icon } from "./icons.js";
import * as api from "./api.js";
import { addLora, draft } from "./draft.js";
import { loadLibrary } from "./library_state.js";
import { LossCurve } from "./loss_curve.js";
import { happened } from "./queue_state.js";
import { attempt, choices, go, place, tell, useStore } from "./state.js";

const SAID = { running: "training", stopped: "stopped", finished: "finished", failed: "failed" };
const KINDS = [{ value: "lora", text: "LoRA" }, { value: "locon", text: "LoCon (convolutions too)" }, { value: "dora", text: "DoRA" }, { value: "loha", text: "LoHa" }, { value: "lokr", text: "LoKr" }];
const kindName = (kind) => KINDS.find((one) => one.value === kind).text.split(" ")[0];
const runPath = (name) => `v1/trainings/${encodeURIComponent(name)}`;

export function Training() {
  const { rest } = useStore(place);
  return rest.length ? html`<${Run} key=${rest[0]} name=${rest[0]} />` : html`<${Runs} />`;
}

/** What the server says, asked again whenever it tells of a training. */
function useAnswer(path) {
  const [found, setFound] = useState(null);
  const said = useStore(happened);
  const load = () => attempt(async () => setFound(await api.get(path)));
  useEffect(() => {
    load();
  }, [path, said]);
  return [found, load];
}

function Runs() {
  const [runs] = useAnswer("v1/trainings");
  const [starting, setStarting] = useState(false);
  return html`<div class="narrow"><header class="head"><div><h1>Training</h1><p class="small soft">A LoRA from your own pictures.</p></div>
      <${Button} kind="primary" icon="plus" onClick=${() => setStarting(true)}>New training<//></header>
    ${runs?.length === 0 && html`<${Empty} icon="training" title="No training yet">Ten to fifty pictures of one person, thing or style are a good start.<//>`}
    <ul class="stack">${(runs ?? []).map((run) => html`<li key=${run.name}><a class="run panel" href=${`#/training/${encodeURIComponent(run.name)}`}>
      <span class="thumb big">${run.samples.length ? html`<img src=${sampleUrl(run, run.samples.at(-1), 128)} alt="" />` : html`<${Icon} name="training" />`}</span>
      <span class="grow stack tight"><span class="row between"><span class="job-title">${run.name}</span><${StatusTag} run=${run} /></span>
        <span class="small soft">${run.step.toLocaleString()} of ${run.steps.toLocaleString()} steps · folder ${run.folder} · on ${stem(run.base)} · ${ago(run.started)}</span>
        <span class="bar"><div style=${{ "--share": `${(100 * run.step) / run.steps}%` }}></div></span></span></a></li>`)}</ul>
    ${starting && html`<${NewTraining} onClose=${() => setStarting(false)} />`}</div>`;
}

const StatusTag = ({ run }) => html`<span class=${`tag ${run.status === "finished" ? "good" : run.status === "failed" ? "bad" : run.status === "running" ? "warn" : ""}`}>${SAID[run.status]}</span>`;
const sampleUrl = (run, sample, width) => `${runPath(run.name)}/samples/${encodeURIComponent(sample.file)}?width=${width}`;

function Run({ name }) {
  const [run, load] = useAnswer(runPath(name));
  const act = async (what) => {
    await attempt(() => api.post(`${runPath(name)}/${what}`));
    if (what === "stop") tell("It stops after the current step or sample, and keeps its state.");
    load();
  };
  useEffect(() => {
    if (run?.landed) attempt(() => loadLibrary(true));
  }, [run?.landed]);
  if (!run) return html`<h1 class="hidden-text">Training</h1><p class="soft">Asking the server …</p>`;
  const left = run.status === "running" && run.seconds ? (run.steps - run.step) * run.seconds : 0;
  const rows = [...new Set(run.samples.map((sample) => sample.index))];
  return html`<div class="lora-page"><header class="head"><div class="row grow"><${IconButton} icon="left" label="Back to all trainings" onClick=${() => go("/training")} /><div class="grow"><h1 class="clip">${run.name}</h1><p class="small soft breaks">${kindName(run.kind)} of rank ${run.rank} on ${stem(run.base)}, from the folder ${run.folder}</p></div><${StatusTag} run=${run} /></div>
      <div class="row wrap">
        ${run.status === "running" && html`<${Button} icon="stop" disabled=${run.stopping} onClick=${() => act("stop")}>${run.stopping ? "Stopping …" : "Stop"}<//>`}
        ${["stopped", "failed"].includes(run.status) && html`<${Button} kind="primary" icon="play" onClick=${() => act("resume")}>Go on<//>`}
        ${run.landed && html`<a class="button" href=${`#/library/${encodeURIComponent(run.landed)}`}><${Icon} name="library" />In the library</a><${Button} kind="primary" icon="draw" onClick=${() => {
          addLora(run.landed, { triggers: run.trigger ? [run.trigger] : [] });
          go("/draw");
        }}>Draw with it<//>`}
        ${run.status !== "running" && html`<${IconButton} icon="trash" label="Forget this training" onClick=${async () => {
          if (!confirm(`Delete ${run.name} with its states and samples? The LoRA in the library stays.`)) return;
          if ((await attempt(() => api.remove(runPath(name)))) !== undefined) go("/training");
        }} />`}
      </div></header>
    <div class="stack loose">
      ${run.what && html`<div class="callout" role="alert"><strong>${run.what}</strong><p class="small">${run.advice}</p></div>`}
      <section class="panel stack"><div class="row between numbers"><h2>Loss</h2><span class="small soft" role="status">step ${run.step.toLocaleString()} of ${run.steps.toLocaleString()}${left ? `, ${time(left)} left` : ""}</span></div>
        <div class=${`bar ${run.status === "running" && !run.step ? "unknown" : ""}`} role="progressbar" aria-label="Training" aria-valuemin="0" aria-valuemax=${run.steps} aria-valuenow=${run.step}><div style=${{ "--share": `${(100 * run.step) / run.steps}%` }}></div></div>
        <${LossCurve} losses=${run.losses} validations=${run.validations} running=${run.status === "running"} /></section>
      ${rows.length > 0 && html`<section class="panel stack"><h2>Samples</h2>${rows.map((row) => html`<div key=${row} class="stack tight"><p class="small soft breaks">${run.prompts[row]}</p><ul class="sample-strip">${run.samples.filter((sample) => sample.index === row).map((sample) => html`<li key=${sample.file}><a href=${sampleUrl(run, sample, 1024)} target="_blank" rel="noopener"><img src=${sampleUrl(run, sample, 256)} alt=${`At step ${sample.step}`} loading="lazy" /></a><span class="tiny soft numbers">step ${sample.step.toLocaleString()}</span></li>`)}</ul></div>`)}</section>`}
    </div></div>`;
}

function time(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function NewTraining({ onClose }) {
  const found = useStore(choices);
  const bases = (found?.bases ?? []).filter((base) => base.kind === "checkpoints");
  const [folders, setFolders] = useState(null);
  const [busy, setBusy] = useState(false);
  const [said, setSaid] = useState("");
  const files = useRef(null);
  const first = bases.find((base) => base.name === draft.value.base) ?? bases[0];
  const sizeOf = (base) => base?.size || (base?.family === "sdxl" || base?.family === "flux" ? 1024 : 512);
  const [values, setValues] = useState({ name: "", base: "", folder: "", trigger: "", kind: "lora", steps: 1000, resolution: 0, rank: 16, rate: 0.0001, batch: 1, text_encoder: false, prompts: "", sample_every: 100 });
  const set = (more) => setValues((now) => ({ ...now, ...more }));
  const load = async (choose) => {
    const all = await attempt(() => api.get("v1/trainings/folders"));
    if (!all) return;
    setFolders(all);
    setValues((now) => ({ ...now, folder: choose ?? (now.folder || all[0]?.name || "") }));
  };
  useEffect(() => {
    load();
  }, []);
  const put = async (list) => {
    const chosen = [...list].filter((file) => /\.(png|jpe?g|webp|bmp|gif|avif|txt|caption)$/i.test(file.name));
    if (!chosen.length) return setSaid("There are no pictures among these files.");
    const folder = (chosen[0].webkitRelativePath?.split("/")[0] || values.name || "my pictures").replace(/[^\p{L}\p{N} _.-]/gu, "_");
    let refused = 0;
    for (const [index, file] of chosen.entries()) {
      setSaid(`Putting file ${index + 1} of ${chosen.length} into ${folder} …`);
      try {
        await api.upload(`v1/trainings/folders/${encodeURIComponent(folder)}?${api.query({ name: file.name })}`, file, "PUT");
      } catch {
        refused += 1;
      }
    }
    setSaid(`${chosen.length - refused} files are in the folder ${folder}${refused ? `; ${refused} could not be read` : ""}.`);
    await load(folder);
  };
  const base = values.base || first?.name || "";
  const resolution = values.resolution || sizeOf(bases.find((one) => one.name === base));
  const start = async () => {
    setBusy(true);
    const prompts = values.prompts.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, 8);
    const run = await attempt(() => api.post("v1/trainings", { ...values, base, resolution, name: values.name.trim(), prompts }));
    setBusy(false);
    if (run) go(`/training/${encodeURIComponent(run.name)}`);
  };
  const chosen = folders?.find((folder) => folder.name === values.folder);
  const missing = [!values.name.trim() && "a name", !values.folder && "a folder of pictures", !base && "a base model"].filter(Boolean);
  return html`<${Sheet} title="New training" onClose=${onClose}><form class="stack loose" onSubmit=${(e) => {
    e.preventDefault();
    start();
  }}>
    <section class="stack"><${TextField} label="Name of the LoRA" value=${values.name} onChange=${(name) => set({ name })} required placeholder="my_style" />
      <${Select} label="Folder of pictures" value=${values.folder} empty=${folders?.length ? undefined : "No folder yet"} options=${(folders ?? []).map((folder) => ({ value: folder.name, text: `${folder.name} (${folder.pictures} pictures)` }))} onChange=${(folder) => set({ folder })} />
      <div class="row wrap"><${Button} kind="small" icon="folder" onClick=${() => files.current.click()}>Upload a folder<//>${chosen && html`<span class="small soft">${chosen.captions} of ${chosen.pictures} have a caption</span>`}
        <input ref=${files} class="hidden-text" type="file" tabindex="-1" aria-label="Pictures and captions" multiple webkitdirectory onChange=${(e) => put(e.target.files)} /></div>
      <p class="small soft" role="status">${said}</p>
      <${TextField} label="Trigger word" value=${values.trigger} onChange=${(trigger) => set({ trigger })} placeholder="a word that nobody else uses" /></section>
    <section class="stack"><${Select} label="Base model" value=${base} options=${bases.map((base) => ({ value: base.name, text: baseLabel(base) }))} onChange=${(base) => set({ base, resolution: 0 })} />
      <div class="fields">
        <label><span class="label">Steps</span><${NumberField} wide whole label="Training steps" value=${values.steps} low=${1} high=${1000000} onChange=${(steps) => set({ steps, sample_every: Math.max(1, Math.round(steps / 10)) })} /></label>
        <label><span class="label">Resolution</span><${NumberField} wide whole label="Resolution" value=${resolution} low=${16} high=${8192} onChange=${(resolution) => set({ resolution })} /></label>
        <label><span class="label">Rank</span><${NumberField} wide whole label="Rank" value=${values.rank} low=${1} high=${1024} onChange=${(rank) => set({ rank })} /></label>
        <label><span class="label">Learning rate</span><${NumberField} wide label="Learning rate" value=${values.rate} low=${1e-8} high=${10} step=${0.00005} onChange=${(rate) => set({ rate })} /></label>
      </div></section>
    <${TextArea} label="Sample prompts, one a line" value=${values.prompts} onChange=${(prompts) => set({ prompts })} placeholder=${`${values.trigger || "trigger word"}, a portrait`} />
    <details><summary>More settings</summary><div class="stack"><${Select} label="Kind" value=${values.kind} options=${KINDS} onChange=${(kind) => set({ kind })} />
      <div class="fields"><label><span class="label">Batch</span><${NumberField} wide whole label="Batch" value=${values.batch} low=${1} high=${256} onChange=${(batch) => set({ batch })} /></label>
        <label><span class="label">Samples every … steps</span><${NumberField} wide whole label="Samples every so many steps" value=${values.sample_every} low=${1} high=${1000000} onChange=${(sample_every) => set({ sample_every })} /></label></div>
      <${Check} label="Train the text encoder too" on=${values.text_encoder} onChange=${(text_encoder) => set({ text_encoder })} /></div></details>
    ${missing.length > 0 && html`<p class="small soft">Still needed: ${missing.join(", ")}.</p>`}
    <button class="button primary large" disabled=${busy || missing.length > 0}><${Icon} name="training" />Start training</button>
  </form><//>`;
}
