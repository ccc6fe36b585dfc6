// One LoRA: everything its file says, its picture and notes, and what it does.
import { html, useEffect, useRef, useState } from "./html.js";
import { Button, Empty, IconButton, NumberField, TextArea, TextField, bytes, stem } from "./controls.js";
import * as api from "./api.js";
import { addLora, draft, renameLora, settingsOf } from "./draft.js";
import { library, loadLibrary, previewUrl } from "./library_state.js";
import { queue } from "./queue_state.js";
import { Facts } from "./receipts.js";
import { attempt, go, tell, useStore } from "./state.js";
import { drawStrengths } from "./strengths.js";
import { WordChip } from "./words.js";

/** "a ×3, b ×1", and just "a" where there is nothing else. */
const counts = (found) => (Object.keys(found).length === 1 ? Object.keys(found)[0] : Object.entries(found).map(([name, count]) => `${name} ×${count}`).join(", "));
const PARTS = { model: "of the model", clip: "of the text encoders" };

export function LoraPage({ name }) {
  const entry = useStore(library, (known) => known.byName.get(name));
  const base = useStore(draft, (d) => d.base);
  const kind = useStore(draft, (d) => d.base_kind);
  const [page, setPage] = useState(null);
  const [problem, setProblem] = useState("");
  const [hashes, setHashes] = useState(null);
  const load = async () => {
    try {
      setPage(await api.get(`v1/loras/inspect?${api.query({ name, base, base_kind: kind })}`));
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  };
  useEffect(() => {
    load();
  }, [name, base, entry?.modified, entry?.preview]);
  useEffect(() => {
    api.get(`v1/loras/hashes?${api.query({ name })}`).then(setHashes, () => {});
  }, [name]);
  const title = entry?.title || stem(name);
  return html`<div class="lora-page"><header class="head"><div class="row grow"><${IconButton} icon="left" label="Back to the library" onClick=${() => go("/library")} /><div class="grow"><h1 class="clip">${title}</h1><p class="small soft clip">${name}</p></div></div>
      <div class="row wrap"><${Button} kind="primary" icon="draw" disabled=${Boolean(problem)} onClick=${() => {
        addLora(name, entry);
        go("/draw");
      }}>Draw with it<//><${Button} icon="grid" disabled=${!base || Boolean(problem)} onClick=${() => strengths(name, entry)}>Grid of strengths<//></div></header>
    ${problem && html`<div class="callout" role="alert"><strong>This file cannot be used.</strong><p class="small breaks">${problem}</p></div>`}
    <div class="lora-columns">
      <${Preview} name=${name} entry=${entry} />
      <div class="stack loose lora-facts">
        ${page?.fit && html`<${Fit} page=${page} base=${base} />`}
        ${page && html`<${Words} page=${page} />`}
        ${page && html`<section class="panel stack"><h2>The file</h2><${Facts} facts=${about(page, entry)} /></section>`}
        ${page && Object.keys(page.facts).length > 0 && html`<section class="panel stack"><h2>How it was made</h2><${Facts} facts=${Object.entries(page.facts).map(([fact, value]) => [fact[0].toUpperCase() + fact.slice(1), value])} /></section>`}
        ${!problem && html`<section class="panel stack"><h2>Hashes and duplicates</h2>${hashes ? html`<${Facts} facts=${Object.entries(hashes.hashes).map(([key, value]) => [key, html`<code>${value}</code>`])} />
          ${hashes.duplicates.length ? html`<div class="stack tight"><h3>The same tensors</h3>${hashes.duplicates.map((other) => html`<a key=${other} class="small breaks" href=${`#/library/${encodeURIComponent(other)}`}>${other}</a>`)}</div>` : html`<p class="small soft">No other file has the same tensors.</p>`}` : html`<p class="small soft">Reading the file …</p>`}</section>`}
      </div>
      <div class="stack loose"><${Notes} key=${page ? "there" : "not yet"} name=${name} page=${page} onSaved=${load} /><${Rename} name=${name} /></div>
    </div></div>`;
}

/** The form's drawing, or something simple, with this LoRA at several strengths. */
async function strengths(name, entry) {
  const settings = settingsOf(draft.value);
  const words = (entry?.triggers ?? []).slice(0, 1);
  const prompt = settings.prompt || [...words, "a portrait"].join(", ");
  const address = await attempt(() => drawStrengths({ ...settings, prompt }, name));
  if (address) go(address);
}

function about(page, entry) {
  return [
    ["Made for", page.title],
    ["Modules", Object.entries(page.parts).sort((a, b) => b[1] - a[1]).map(([part, count]) => `${count} ${PARTS[part] ?? part}`).join(", ")],
    ["Algebra", counts(page.algorithms)],
    ["Rank", counts(page.ranks)],
    ["Scale", counts(page.alpha)],
    ["Names", page.dialect],
    ["Written by", page.trainer === "unknown" ? "" : page.trainer],
    ["Stored as", `${counts(page.dtypes)}, ${bytes(page.size)}`],
    ["Changed", entry ? new Date(entry.modified * 1000).toLocaleString() : ""],
    ["Description", page.description],
    page.unknown.length > 0 && ["Unknown tensors", `${page.unknown.length}: ${page.unknown.slice(0, 3).join(", ")}`],
    ...page.notes.map((note) => ["Note", note]),
  ].filter((fact) => fact && fact[1]);
}

function Fit({ page, base }) {
  const [first, ...others] = page.fit_lines;
  const placed = Object.values(page.fit.components).some((part) => part.matched > 0);
  const good = placed && !page.fit.unplaced.length && !page.fit.rejected.length;
  return html`<section class=${`panel stack ${good ? "" : "careful"}`}><div class="row between"><h2>On ${stem(base)}</h2><span class=${`tag ${good ? "good" : "warn"}`}>${good ? "Fits" : placed ? "Fits in part" : "Does not fit"}</span></div>
    <p class="small">${first}</p>${others.map((line, index) => html`<p key=${index} class="small soft breaks">${line}</p>`)}</section>`;
}

function Words({ page }) {
  const prompt = useStore(draft, (d) => d.prompt);
  if (!page.triggers.length && !page.tags.length) return null;
  const word = (text, count) => html`<${WordChip} key=${text} word=${text} prompt=${prompt} count=${count} onToggle=${() => tell(`Prompt: ${draft.value.prompt || "(empty)"}`)} />`;
  return html`<section class="panel stack">
    ${page.triggers.length > 0 && html`<div class="row between"><h2>Trigger words</h2><span class="tiny soft">from ${page.trigger_source}</span></div><div class="row wrap">${page.triggers.slice(0, 40).map((text) => word(text))}</div>`}
    ${page.tags.length > 0 && html`<h3>Training tags</h3><div class="row wrap">${page.tags.map(([text, count]) => word(text, count))}</div>`}</section>`;
}

function Preview({ name, entry }) {
  const file = useRef(null);
  const last = useStore(queue, (state) => state?.finished.find((card) => card.pictures.length && card.receipts.some((receipt) => receipt.name === name)));
  const put = async (body) => {
    if (!body || (await attempt(() => api.upload(`v1/loras/preview?${api.query({ name })}`, body, "PUT"))) === undefined) return;
    tell("The preview is changed.");
    attempt(() => loadLibrary(true));
  };
  return html`<section class="stack"><div class="lora-cover">${entry?.preview ? html`<img src=${previewUrl(entry, 800)} alt=${`Preview of ${stem(name)}`} />` : html`<span class="monogram large">${stem(name).slice(0, 2)}</span>`}</div>
    <div class="row wrap"><${Button} kind="small" icon="picture" onClick=${() => file.current.click()}>Choose a picture<//>
      ${last && html`<${Button} kind="small" icon="draw" onClick=${async () => put(await (await fetch(last.pictures[0].url.replace(/^\//, ""))).blob())}>Use the last drawing<//>`}
      <input ref=${file} class="hidden-text" type="file" tabindex="-1" accept="image/*" aria-label="Preview picture" onChange=${(e) => put(e.target.files[0])} /></div></section>`;
}

function Notes({ name, page, onSaved }) {
  const found = page?.notes_fields ?? {};
  const [words, setWords] = useState(found["activation text"] ?? "");
  const [weight, setWeight] = useState(typeof found["preferred weight"] === "number" ? found["preferred weight"] : 1);
  const [notes, setNotes] = useState(found.notes ?? "");
  if (!page) return null;
  const save = async () => {
    const done = await attempt(() => api.patch(`v1/loras?${api.query({ name })}`, { activation_text: words, preferred_weight: weight, notes }));
    if (!done) return;
    tell("The notes are kept beside the file.");
    await attempt(() => loadLibrary(true));
    onSaved();
  };
  return html`<form class="panel stack" onSubmit=${(e) => {
    e.preventDefault();
    save();
  }}><h2>Your notes</h2>
    <${TextField} label="Trigger words of your own" value=${words} onChange=${setWords} placeholder="words, with commas" />
    <label class="row between small"><span>Preferred strength</span><${NumberField} label="Preferred strength" value=${weight} low=${-100} high=${100} step=${0.05} onChange=${setWeight} /></label>
    <${TextArea} label="Notes" value=${notes} onChange=${setNotes} />
    <button class="button">Keep notes</button></form>`;
}

function Rename({ name }) {
  const [text, setText] = useState(name);
  const rename = async () => {
    const done = await attempt(() => api.patch(`v1/loras?${api.query({ name })}`, { new_name: text.trim() }));
    if (!done) return;
    tell(`It is called ${done.name} now.`);
    renameLora(name, done.name);
    go(`/library/${encodeURIComponent(done.name)}`); // before the old name is gone from the library
    await attempt(() => loadLibrary(true));
  };
  return html`<form class="panel stack" onSubmit=${(e) => {
    e.preventDefault();
    rename();
  }}><h2>Name</h2><${TextField} label="File name, with its folder" value=${text} onChange=${setText} />
    <button class="button" disabled=${text.trim() === name || !text.trim()}>Rename</button><p class="tiny soft">Its picture and notes go with it. Workflows that name the old file will ask for it.</p></form>`;
}
