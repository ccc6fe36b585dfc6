// All pictures: newest first, what is in them, the bin, and two side by side.
import { html, useEffect, useMemo, useRef, useState } from "./html.js";
import { Button, Compare, CompareFrame, Empty, IconButton, Sheet, Thumbnail, ago, bytes } from "./controls.js";
import { Icon } from "./icons.js";
import * as api from "./api.js";
import { again, use, vary } from "./draft.js";
import { queue, show } from "./queue_state.js";
import { Facts, Receipts } from "./receipts.js";
import { attempt, dismiss, go, notices, tell, useStore } from "./state.js";
import { VirtualList } from "./virtual.js";
import { openWorkflows } from "./workflow_form.js";

const MOST = 100_000;
const nameOf = (picture) => (picture.subfolder ? `${picture.subfolder}/${picture.filename}` : picture.filename);
const fullUrl = (picture) => `view?${api.query({ filename: picture.filename, subfolder: picture.subfolder, type: "output" })}`;
const smallUrl = (picture, width) => `v1/pictures/thumbnail?${api.query({ name: picture.filename, subfolder: picture.subfolder, width, at: picture.modified })}`;
const shortly = (picture) => picture.filename.replace(/_?\.\w+$/, "");
const unbinned = (name) => name.replace(/^\.bin\//, "");

export function Gallery() {
  const [list, setList] = useState(null);
  const [bin, setBin] = useState(false);
  const [text, setText] = useState("");
  const [open, setOpen] = useState(null);
  const [picking, setPicking] = useState(false);
  const [picked, setPicked] = useState([]);
  const [comparing, setComparing] = useState(false);
  const latest = useStore(queue, (state) => state?.finished[0]?.id);
  const asked = useRef(0);
  const load = () =>
    attempt(async () => {
      const mine = ++asked.current;
      const found = await api.get(`v1/pictures?${api.query({ limit: MOST, bin: bin || undefined })}`);
      if (mine === asked.current) setList(found.pictures);
    });
  useEffect(() => {
    load();
  }, [bin, latest]);
  const found = useMemo(() => (list ?? []).filter((picture) => nameOf(picture).toLowerCase().includes(text.toLowerCase())), [list, text]);
  const place = open === null ? -1 : found.findIndex((picture) => nameOf(picture) === open);
  const toggle = (name) => setPicked((now) => (now.includes(name) ? now.filter((one) => one !== name) : [...now, name]));
  const stop = () => {
    setPicking(false);
    setPicked([]);
  };
  const discard = async (names) => {
    const moved = await attempt(() => api.post("v1/pictures/delete", { names }));
    if (!moved) return;
    tell(names.length === 1 ? "Moved to the bin." : `${names.length} pictures moved to the bin.`, {
      seconds: 10,
      action: { name: "Undo", run: () => attempt(async () => { await api.post("v1/pictures/restore", { names: moved.names.map(unbinned) }); load(); }) },
    });
    stop();
    setOpen(null);
    load();
  };
  const bringBack = async (names) => {
    await attempt(() => api.post("v1/pictures/restore", { names: names.map(unbinned) }));
    notices.value.filter((one) => one.action).forEach((one) => dismiss(one.id)); // nothing to undo any more
    tell("Back in the gallery.");
    stop();
    setOpen(null);
    load();
  };
  return html`<div class="tall-view">
    <header class="head"><div><h1>${bin ? "Bin" : "Gallery"}</h1><p class="small soft" role="status">${list ? `${found.length.toLocaleString()} ${found.length === 1 ? "picture" : "pictures"}` : "Looking …"}${picking ? `, ${picked.length} chosen` : ""}</p></div>
      <div class="row wrap">
        <input class="input search" type="search" aria-label="Search by file name" placeholder="Search by file name" value=${text} onInput=${(e) => setText(e.target.value)} />
        <${Button} icon="check" aria-pressed=${picking} onClick=${() => (picking ? stop() : setPicking(true))}>Choose<//>
        <${Button} icon=${bin ? "gallery" : "trash"} onClick=${() => {
          stop();
          setList(null);
          setBin(!bin);
        }}>${bin ? "Gallery" : "Bin"}<//>
      </div></header>
    ${picking && html`<div class="row wrap chosen-bar">
      <${Button} kind="small" icon="compare" disabled=${picked.length !== 2} onClick=${() => setComparing(true)}>Compare two<//>
      ${bin ? html`<${Button} kind="small" icon="again" disabled=${!picked.length} onClick=${() => bringBack(picked)}>Bring back<//>` : html`<${Button} kind="small danger" icon="trash" disabled=${!picked.length} onClick=${() => discard(picked)}>To the bin<//>`}
      <${Button} kind="small quiet" onClick=${stop}>Done<//></div>`}
    ${bin && found.length > 0 && html`<div class="row between chosen-bar small"><span class="soft">Nothing here is lost until the bin is emptied.</span><${Button} kind="small danger" icon="trash" onClick=${async () => {
      if (!confirm(`Delete ${found.length} pictures for good?`)) return;
      await attempt(() => api.post("v1/pictures/empty-bin"));
      load();
    }}>Empty the bin<//></div>`}
    ${list && found.length === 0 && html`<${Empty} icon="gallery" title=${bin ? "The bin is empty" : text ? "No picture of that name" : "No pictures yet"}>${bin || text ? "" : html`What you draw appears here. <a href="#/draw">Draw something</a>`}<//>`}
    ${found.length > 0 && html`<${VirtualList} className="wall" items=${found} asked=${text} height=${212} least=${164} gap=${12} label="Pictures" keyOf=${nameOf} row=${(picture) => {
      const name = nameOf(picture);
      const on = picked.includes(name);
      return html`<button type="button" class="tile" aria-pressed=${picking ? on : undefined} aria-label=${`${name}, ${ago(picture.modified)}`} onClick=${() => (picking ? toggle(name) : setOpen(name))}>
        <${Thumbnail} src=${smallUrl(picture, 400)} />${picking && html`<span class="tick"><${Icon} name=${on ? "check" : "plus"} /></span>`}</button>`;
    }} />`}
    ${open !== null && place >= 0 && html`<${Viewer} picture=${found[place]} bin=${bin} onClose=${() => setOpen(null)} onDelete=${() => discard([open])} onRestore=${() => bringBack([open])}
      onStep=${(by) => found[place + by] && setOpen(nameOf(found[place + by]))} first=${place === 0} last=${place === found.length - 1} />`}
    ${comparing && html`<${TwoPictures} names=${picked} pictures=${list} onClose=${() => setComparing(false)} />`}
  </div>`;
}

function TwoPictures({ names, pictures, onClose }) {
  const [left, right] = names.map((name) => pictures.find((picture) => nameOf(picture) === name));
  const [size, setSize] = useState(null);
  useEffect(() => {
    attempt(async () => setSize(await api.get(`v1/pictures/facts?${api.query({ name: names[0] })}`)));
  }, []);
  return html`<${Sheet} wide title="Compare" onClose=${onClose}><${CompareFrame} size=${size}><${Compare} left=${fullUrl(left)} right=${fullUrl(right)} leftName=${shortly(left)} rightName=${shortly(right)} /><//><//>`;
}

function Viewer({ picture, bin, onClose, onDelete, onRestore, onStep, first, last }) {
  const [read, setRead] = useState({ name: "", facts: null });
  const name = nameOf(picture);
  useEffect(() => {
    let asked = true;
    attempt(() => api.get(`v1/pictures/facts?${api.query({ name })}`)).then((facts) => asked && setRead({ name, facts }));
    return () => {
      asked = false;
    };
  }, [name]);
  const there = read.name === name; // the facts of this picture, or that there are none
  const facts = there ? read.facts : null;
  const start = async (work) => {
    const card = await attempt(work);
    if (!card) return;
    show(card.id);
    go("/draw");
  };
  const asWorkflow = async () => {
    const found = await attempt(() => api.get(`v1/pictures/workflows?${api.query({ name })}`));
    if (found) openWorkflows(found.workflows, picture.filename);
  };
  const s = facts?.settings;
  return html`<${Sheet} wide title=${picture.filename} onClose=${onClose} actions=${html`<${IconButton} icon="left" label="Newer" off=${first} onClick=${() => onStep(-1)} /><${IconButton} icon="right" label="Older" off=${last} onClick=${() => onStep(1)} />`} onKeyDown=${(e) => {
    if (e.key === "ArrowLeft" && !first) onStep(-1);
    if (e.key === "ArrowRight" && !last) onStep(1);
  }}>
    <div class="viewer">
      <div class="viewer-picture"><a href=${fullUrl(picture)} target="_blank" rel="noopener"><img key=${name} class=${facts && facts.width <= 256 ? "small-picture" : ""} src=${fullUrl(picture)} alt=${facts?.title || picture.filename} /></a></div>
      <div class="stack loose">
        ${facts?.title && html`<p class="prompt-line">${facts.title}</p>`}
        ${there && html`<div class="row wrap">
          ${s && html`<${Button} icon="edit" kind="primary" onClick=${() => {
            use(s);
            go("/draw");
          }}>Use these settings<//>`}
          ${facts?.has_workflow && html`<${Button} icon="file" onClick=${asWorkflow}>Open as workflow<//>`}
          ${s && !bin && html`<${Button} icon="again" onClick=${() => start(() => again(s))}>Again<//><${Button} icon="vary" onClick=${() => start(() => vary(s, { ...picture, type: "output" }))}>Vary<//>`}
          <a class="button" href=${fullUrl(picture)} download=${picture.filename}><${Icon} name="download" />Save</a>
          ${bin ? html`<${Button} icon="again" onClick=${onRestore}>Bring back<//>` : html`<${Button} icon="trash" kind="danger" onClick=${onDelete}>To the bin<//>`}
        </div>`}
        ${facts && html`<${Facts} facts=${[
          ["Drawn", new Date(facts.modified * 1000).toLocaleString()],
          ["Size", `${facts.width} × ${facts.height}, ${bytes(facts.size)}`],
          s && ["Base model", s.base],
          s?.negative && ["Negative prompt", s.negative],
          s && ["Sampling", `${s.steps} steps, CFG ${s.cfg}, ${s.sampler}, ${s.scheduler}`],
          s && ["Seed", String(s.seed)],
          s?.loras.length > 0 && ["LoRAs", s.loras.map((lora) => `${lora.name} (${lora.model})`).join(", ")],
          picture.subfolder && !bin && ["Folder", picture.subfolder],
          ...Object.entries(facts.texts),
        ].filter(Boolean)} />`}
        ${facts && html`<${Receipts} receipts=${facts.receipts} />`}
      </div>
    </div><//>`;
}
