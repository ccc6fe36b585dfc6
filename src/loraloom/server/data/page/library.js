// The LoRA library: thousands of files, searched and sorted without waiting.
import { html, useMemo, useState } from "./html.js";
import { Button, Empty, IconButton, Select, Thumbnail, bytes, stem } from "./controls.js";
import { Icon } from "./icons.js";
import { addLora, draft } from "./draft.js";
import { fits, library, loadLibrary, previewUrl, search } from "./library_state.js";
import { LoraPage } from "./lora_page.js";
import { attempt, kept, place, tell, useStore } from "./state.js";
import { VirtualList } from "./virtual.js";

const view = kept("loraloom.library", { sort: "name", tiles: true, fit: "all" });
const SORTS = {
  name: ["Name", null],
  newest: ["Newest", (a, b) => b.modified - a.modified],
  largest: ["Largest", (a, b) => b.size - a.size],
  rank: ["Highest rank", (a, b) => Number(b.rank || 0) - Number(a.rank || 0)],
};
const folderOf = (entry) => entry.name.split("/").slice(0, -1).join("/");

export function Library() {
  const { rest } = useStore(place);
  return rest.length ? html`<${LoraPage} key=${rest[0]} name=${rest[0]} />` : html`<${Shelves} />`;
}

/** Folders with how many files they hold, inner ones counted too. */
function foldersOf(entries) {
  const counts = new Map();
  for (const entry of entries) {
    const parts = entry.name.split("/").slice(0, -1);
    for (let depth = 1; depth <= parts.length; depth++) {
      const folder = parts.slice(0, depth).join("/");
      counts.set(folder, (counts.get(folder) ?? 0) + 1);
    }
  }
  return [...counts].sort(([a], [b]) => a.localeCompare(b));
}

function Shelves() {
  const known = useStore(library);
  const settings = useStore(view);
  const family = useStore(draft, (d) => d.family);
  const base = useStore(draft, (d) => d.base);
  const { query } = useStore(place);
  const [text, setText] = useState(query.q ?? "");
  const [folder, setFolder] = useState("");
  const [kind, setKind] = useState("");
  const folders = useMemo(() => foldersOf(known.entries), [known.entries]);
  const kinds = useMemo(() => [...new Set(known.entries.map((entry) => entry.base).filter(Boolean))].sort(), [known.entries]);
  const copies = useMemo(() => {
    const counts = new Map();
    for (const entry of known.entries) if (entry.alike) counts.set(entry.alike, (counts.get(entry.alike) ?? 0) + 1);
    return counts;
  }, [known.entries]);
  const found = useMemo(() => {
    let entries = search(known.entries, text);
    if (folder) entries = entries.filter((entry) => entry.name.startsWith(`${folder}/`));
    if (settings.fit === "fits") entries = entries.filter((entry) => fits(entry, family) === "fits");
    if (settings.fit === "other") entries = entries.filter((entry) => fits(entry, family) === "other");
    if (settings.fit === "copies") entries = entries.filter((entry) => (copies.get(entry.alike) ?? 0) > 1).sort((a, b) => a.alike.localeCompare(b.alike));
    if (kind) entries = entries.filter((entry) => entry.base === kind);
    const order = SORTS[settings.sort]?.[1];
    return order && settings.fit !== "copies" ? [...entries].sort(order) : entries;
  }, [known.entries, text, folder, kind, settings, family, copies]);
  const change = (values) => view.set((now) => ({ ...now, ...values }));
  const fitChoices = [["all", "All"], ["fits", "Fits"], ["other", "Does not fit"], ["copies", "Duplicates"]];
  return html`<div class="tall-view">
    <header class="head"><div><h1>LoRA library</h1><p class="small soft" role="status">${found.length.toLocaleString()} of ${known.entries.length.toLocaleString()} LoRAs${known.read < known.total ? `, ${known.read.toLocaleString()} of ${known.total.toLocaleString()} read` : ""}</p></div>
      <div class="row wrap">
        <input class="input search" type="search" aria-label="Search LoRAs" placeholder="Name, tag, trigger word" value=${text} onInput=${(e) => setText(e.target.value)} />
        <${IconButton} icon=${settings.tiles ? "queue" : "grid"} label=${settings.tiles ? "Show as a list" : "Show as tiles"} onClick=${() => change({ tiles: !settings.tiles })} />
        <${IconButton} icon="again" label="Read the folder again" onClick=${() => attempt(() => loadLibrary(true))} />
      </div></header>
    <div class="shelf-filters">
      <div class="row wrap" role="group" aria-label=${base ? `Fit to ${stem(base)}` : "Fit"}>${fitChoices.map(([key, name]) => html`<button type="button" class="chip" key=${key} aria-pressed=${settings.fit === key} onClick=${() => change({ fit: key })}>${name}</button>`)}
        ${base && html`<span class="tiny soft">for ${stem(base)}</span>`}</div>
      <div class="shelf-selects">
        ${folders.length > 0 && html`<${Select} hideLabel label="Folder" value=${folder} empty="All folders" options=${folders.map(([name, count]) => ({ value: name, text: `${name} (${count})` }))} onChange=${setFolder} />`}
        ${kinds.length > 1 && html`<${Select} hideLabel label="Made for" value=${kind} empty="Every base" options=${kinds} onChange=${setKind} />`}
        <${Select} hideLabel label="Order" value=${settings.sort} options=${Object.entries(SORTS).map(([value, [name]]) => ({ value, text: name }))} onChange=${(sort) => change({ sort })} />
      </div>
    </div>
    ${!known.ready && html`<p class="soft">Reading the folder …</p>`}
    ${known.ready && found.length === 0 && html`<${Empty} icon="library" title=${known.entries.length ? "No LoRA here" : "The library is empty"}>${known.entries.length ? "Try another word, or All." : "Drop .safetensors files on this page, or put them into the folder models/loras and read it again."}<//>`}
    ${found.length > 0 && html`<${VirtualList} key=${String(settings.tiles)} className="shelf" items=${found} asked=${[text, folder, kind, settings.fit, settings.sort].join("\n")} label="LoRAs" keyOf=${(entry) => entry.name}
      height=${settings.tiles ? 268 : 68} least=${settings.tiles ? 164 : 0} gap=${settings.tiles ? 14 : 4}
      row=${(entry) => html`<${settings.tiles ? Tile : Row} entry=${entry} family=${family} copies=${copies.get(entry.alike) ?? 0} />`} />`}
  </div>`;
}

const address = (entry) => `#/library/${encodeURIComponent(entry.name)}`;
const short = (base) => base.replace("Stable Diffusion XL", "SDXL").replace("Stable Diffusion ", "SD ");
const facts = (entry) => [short(entry.base), entry.rank && `rank ${entry.rank}`, bytes(entry.size)].filter(Boolean).join(" · ");

function Marks({ entry, family, copies }) {
  if (entry.problem) return html`<span class="tag bad">unusable</span>`;
  const fit = fits(entry, family);
  if (fit === "other") return html`<span class="tag warn">does not fit</span>`;
  return copies > 1 && html`<span class="tag">duplicate</span>`;
}

/** Why it cannot be used, without the path that the list's reader knows. */
const reason = (entry) => entry.problem.split(": ").slice(1).join(": ");

const use = (entry) => {
  addLora(entry.name, entry);
  tell(`${entry.shown} is in the drawing.`);
};

function Tile({ entry, family, copies }) {
  return html`<article class="lora-tile"><a class="lora-picture" href=${address(entry)} tabindex="-1" aria-hidden="true">${entry.preview ? html`<${Thumbnail} src=${previewUrl(entry, 400)} />` : html`<span class="monogram">${stem(entry.name).slice(0, 2)}</span>`}</a>
    <div class="lora-about"><a class="lora-name clip block" href=${address(entry)} title=${entry.name}>${entry.shown}</a>
      <span class="tiny soft clip block">${entry.problem ? reason(entry) : facts(entry)}</span>
      <span class="row between"><span class="row clip tile-marks"><${Marks} entry=${entry} family=${family} copies=${copies} />${!entry.problem && html`<span class="tiny soft clip">${entry.triggers.slice(0, 3).join(", ")}</span>`}</span>
        <${IconButton} icon="plus" label=${`Draw with ${stem(entry.name)}`} disabled=${Boolean(entry.problem)} onClick=${() => use(entry)} /></span></div></article>`;
}

function Row({ entry, family, copies }) {
  return html`<article class="lora-line"><span class="thumb">${entry.preview ? html`<${Thumbnail} src=${previewUrl(entry)} />` : html`<span class="monogram">${stem(entry.name).slice(0, 2)}</span>`}</span>
    <div class="grow"><a class="lora-name clip block" href=${address(entry)} title=${entry.name}>${entry.shown}</a><span class="tiny soft clip block">${folderOf(entry) ? `${folderOf(entry)} · ` : ""}${entry.problem ? reason(entry) : facts(entry)}</span></div>
    <span class="small soft clip line-words">${entry.triggers.slice(0, 4).join(", ")}</span><${Marks} entry=${entry} family=${family} copies=${copies} />
    <${IconButton} icon="plus" label=${`Draw with ${stem(entry.name)}`} disabled=${Boolean(entry.problem)} onClick=${() => use(entry)} /></article>`;
}
