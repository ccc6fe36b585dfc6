// The LoRAs of a drawing: on and off, strengths, order, what each did.
import { html, useState } from "./html.js";
import { Button, Empty, IconButton, NumberField, Sheet, Slider, Switch, Thumbnail, stem } from "./controls.js";
import { Icon } from "./icons.js";
import { addLora, change, changeLora, draft, moveLora, removeLora } from "./draft.js";
import { fits, library, loadLibrary, previewUrl, search } from "./library_state.js";
import { attempt, useStore } from "./state.js";
import { VirtualList } from "./virtual.js";
import { receiptLine } from "./receipts.js";

export function LoraStack({ receipts }) {
  const loras = useStore(draft, (d) => d.loras);
  const family = useStore(draft, (d) => d.family);
  const known = useStore(library);
  const [choosing, setChoosing] = useState(false);
  return html`<section class="stack" aria-labelledby="loras-title">
    <div class="row between"><h2 id="loras-title">LoRAs</h2>
      <${Button} kind="small" icon="plus" onClick=${() => setChoosing(true)}>Add LoRA<//></div>
    ${loras.length === 0 && html`<p class="small soft">None yet. A LoRA adds a style, a person or a thing to the base model.</p>`}
    <ul class="stack">
      ${loras.map((lora, index) => html`<${StackRow} key=${lora.name} lora=${lora} index=${index} last=${index === loras.length - 1}
        entry=${known.byName.get(lora.name)} family=${family} receipt=${receipts?.find((r) => r.name === lora.name)} />`)}
    </ul>
    ${choosing && html`<${LoraPicker} onClose=${() => setChoosing(false)} />`}
  </section>`;
}

function StackRow({ lora, index, last, entry, family, receipt }) {
  const [both, setBoth] = useState(lora.clip === null);
  const name = stem(lora.name);
  return html`<li class=${`lora-row ${lora.on ? "" : "off"}`}>
    <div class="row">
      <${Switch} label=${`${name}: on`} on=${lora.on} onChange=${(on) => changeLora(lora.name, { on })} />
      <a class="grow clip lora-name" href=${`#/library/${encodeURIComponent(lora.name)}`} title=${lora.name}>${entry?.shown ?? name}</a>
      <${IconButton} icon="up" label=${`Move ${name} up`} off=${index === 0} onClick=${() => moveLora(lora.name, -1)} />
      <${IconButton} icon="down" label=${`Move ${name} down`} off=${last} onClick=${() => moveLora(lora.name, 1)} />
      <${IconButton} icon="close" label=${`Remove ${name}`} onClick=${() => removeLora(lora.name)} />
    </div>
    <${Slider} hideLabel label=${`Strength of ${name}`} value=${lora.model} low=${-1} high=${2} step=${0.05} numberLow=${-20} numberHigh=${20}
      onChange=${(model) => changeLora(lora.name, { model })} />
    ${!both && html`<div class="row between small"><span class="soft">On the text encoder</span>
      <${NumberField} label=${`Strength of ${name} on the text encoder`} value=${lora.clip ?? lora.model} low=${-20} high=${20} step=${0.05} onChange=${(clip) => changeLora(lora.name, { clip })} /></div>`}
    ${fits(entry, family) === "other" && html`<p class="small warn-text"><${Icon} name="warning" /> Made for ${entry.base}; it will not fit this base.</p>`}
    <div class="row between tiny soft">
      <span class="grow">${receipt ? receiptLine(receipt) : entry?.base ?? ""}</span>
      <button type="button" class="link" onClick=${() => {
        changeLora(lora.name, { clip: both ? lora.model : null });
        setBoth(!both);
      }}>${both ? "Split strengths" : "One strength"}</button>
    </div>
  </li>`;
}

export function LoraPicker({ onClose }) {
  const known = useStore(library);
  const family = useStore(draft, (d) => d.family);
  const chosen = useStore(draft, (d) => d.loras);
  const [text, setText] = useState("");
  const [all, setAll] = useState(false);
  const usable = known.entries.filter((entry) => !entry.problem);
  const fitting = all || !family ? usable : usable.filter((entry) => fits(entry, family) !== "other");
  const found = search(fitting, text);
  const hidden = usable.length - fitting.length;
  const toggle = (entry, on) => {
    if (on) change({ loras: chosen.filter((lora) => lora.name !== entry.name) });
    else addLora(entry.name, entry);
  };
  return html`<${Sheet} title="Add a LoRA" onClose=${onClose} actions=${html`<${IconButton} icon="again" label="Read the folder again" onClick=${() => attempt(() => loadLibrary(true))} />`}>
    <div class="stack">
      <input class="input" type="search" aria-label="Search LoRAs" placeholder="Search by name, tag or trigger word" value=${text} onInput=${(e) => setText(e.target.value)} autofocus />
      <div class="row between small soft"><span role="status">${found.length.toLocaleString()} ${found.length === 1 ? "LoRA" : "LoRAs"}${known.read < known.total ? `, ${known.read} of ${known.total} read` : ""}</span>
        ${(hidden > 0 || all) && html`<button type="button" class="link" onClick=${() => setAll(!all)}>${all ? "Only those that fit" : `Show ${hidden.toLocaleString()} that do not fit`}</button>`}</div>
      ${found.length === 0
        ? html`<${Empty} icon="library" title="No LoRA here">${usable.length ? "Try another word." : "Drop .safetensors files on this page, or put them into the folder models/loras and read it again."}<//>`
        : html`<${VirtualList} className="picker" items=${found} asked=${text} height=${62} label="LoRAs" keyOf=${(entry) => entry.name} row=${(entry) => {
            const on = chosen.some((lora) => lora.name === entry.name);
            return html`<button type="button" class="pick" aria-pressed=${on} onClick=${() => toggle(entry, on)}>
              <span class="thumb">${entry.preview ? html`<${Thumbnail} src=${previewUrl(entry)} />` : html`<${Icon} name="picture" />`}</span>
              <span class="grow"><span class="clip block">${entry.shown}</span>
                <span class="clip block tiny soft">${[entry.base, entry.rank && `rank ${entry.rank}`, entry.triggers.slice(0, 4).join(", ")].filter(Boolean).join(" · ") || entry.name}</span></span>
              <${Icon} name=${on ? "check" : "plus"} />
            </button>`;
          }} />`}
    </div>
  <//>`;
}
