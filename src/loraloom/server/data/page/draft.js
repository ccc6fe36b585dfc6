// The drawing that is being set up, and what can be made of one that is done.
import * as api from "./api.js";
import { choices, kept, tell } from "./state.js";
import { refresh } from "./queue_state.js";

/** What suits a family where nothing else is known; sizes in pixels. */
const SUITS = {
  sd15: { size: 512, steps: 20, cfg: 7 },
  sd20: { size: 768, steps: 20, cfg: 7 },
  sdxl: { size: 1024, steps: 25, cfg: 6 },
  sdxl_refiner: { size: 1024, steps: 25, cfg: 6 },
  sd3: { size: 1024, steps: 20, cfg: 4, scheduler: "sgm_uniform" },
  flux: { size: 1024, steps: 20, cfg: 1, scheduler: "simple" },
  flux2: { size: 1024, steps: 20, cfg: 1, scheduler: "simple" },
  flux3: { size: 1024, steps: 50, cfg: 3.5, scheduler: "simple" },
  chroma: { size: 1024, steps: 26, cfg: 3.5, scheduler: "beta" },
  lumina2: { size: 1024, steps: 30, cfg: 4, scheduler: "simple" },
  z_image: { size: 1024, steps: 8, cfg: 1, scheduler: "simple" },
  qwen_image: { size: 1328, steps: 50, cfg: 4, scheduler: "simple" },
  qwen_image21: { size: 1024, steps: 25, cfg: 1, scheduler: "simple" },
  krea2: { size: 1024, steps: 8, cfg: 1, scheduler: "simple" },
};
const PLAIN = { size: 512, steps: 20, cfg: 7 };

export const EMPTY = {
  base: "", base_kind: "checkpoints", family: "", channels: 4, text_encoders: [], text_kind: "", vae: "", prompt: "", negative: "",
  width: 512, height: 512, count: 1, steps: 20, cfg: 7, guidance: 3.5, seed: 1, sampler: "euler", scheduler: "normal",
  denoise: 1, loras: [], start: "",
};
export const draft = kept("loraloom.draft", { ...EMPTY, new_seed: true });
export const change = (values) => draft.set((now) => ({ ...now, ...values }));
export const freshSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

export const baseOf = (settings, found = choices.value) =>
  found?.bases.find((base) => base.name === settings.base && base.kind === settings.base_kind);

/** Take another base, with the size and steps that suit it. */
export function chooseBase(base) {
  const suits = SUITS[base.family] ?? PLAIN;
  const size = base.size || suits.size;
  const apart = base.kind === "diffusion_models" ? parts(base) : { text_encoders: [], text_kind: "", vae: "" };
  change({
    base: base.name, base_kind: base.kind, family: base.family, channels: base.channels, width: size, height: size, steps: suits.steps, cfg: suits.cfg,
    scheduler: suits.scheduler ?? draft.value.scheduler, ...apart,
  });
}

/** The text encoders and the VAE that a bare network most likely goes with, by their names. */
function parts(base) {
  const { text_encoders: files, vaes } = choices.value;
  const plain = (text) => text.toLowerCase().replace(/[^a-z0-9]/g, "");
  const named = (kind) => files.find((name) => plain(name).includes(plain(kind)));
  const wanted = base.encoders.length ? base.encoders : [""];
  return {
    text_encoders: wanted.map((kind) => named(kind) ?? named(kind.replace(/_?xxl$/, "")) ?? (wanted.length === 1 ? files[0] : undefined) ?? ""),
    text_kind: base.text_kind,
    vae: vaes.find((name) => base.family === "flux" && /(^|\/)ae\b/i.test(name)) ?? vaes[0] ?? "",
  };
}

// A base that is not there (any more) gives way to the first that is.
choices.listen((found) => {
  if (found?.bases.length && !baseOf(draft.value, found)) chooseBase(found.bases[0]);
});

const ours = Object.keys(EMPTY);
export const settingsOf = (values) => Object.fromEntries(ours.map((name) => [name, values[name] ?? EMPTY[name]]));

/** Queue a drawing; its card. */
export async function submit(values) {
  const card = await api.post("v1/draw", settingsOf(values));
  refresh();
  return card;
}

export async function drawDraft() {
  if (draft.value.new_seed) change({ seed: freshSeed() });
  return submit(draft.value);
}

/** Put a job's settings into the form. */
export function use(settings) {
  const family = baseOf(settings)?.family || settings.family || "";
  draft.set({ ...EMPTY, ...settings, family, new_seed: false });
  tell("The form has these settings now.");
}

export const again = (settings) => submit({ ...settings, seed: freshSeed() });

/** Something like a picture: begin from it, and redraw it by a little more than half. */
export const vary = (settings, file) =>
  submit({ ...settings, start: `${file.subfolder ? `${file.subfolder}/` : ""}${file.filename} [${file.type}]`, denoise: 0.6, seed: freshSeed() });

/** The same drawing with one LoRA switched off. */
export const without = (settings, name) =>
  submit({ ...settings, loras: settings.loras.map((lora) => (lora.name === name ? { ...lora, on: false } : lora)) });

// ---- LoRAs and their words ----

/** entry: what the library says of it: its trigger words, and the strength that its user prefers. */
export function addLora(name, entry) {
  if (draft.value.loras.some((lora) => lora.name === name)) return;
  change({ loras: [...draft.value.loras, { name, model: entry?.strength ?? 1, clip: null, on: true }] });
  const words = (entry?.triggers ?? []).filter((word) => !holdsWord(draft.value.prompt, word));
  if (words.length) tell(`${name.split("/").pop().replace(/\.\w+$/, "")} answers to ${words.join(", ")}. A click beside the prompt inserts ${words.length > 1 ? "them" : "it"}.`);
}
export const changeLora = (name, values) => change({ loras: draft.value.loras.map((lora) => (lora.name === name ? { ...lora, ...values } : lora)) });
export const renameLora = (name, now) => changeLora(name, { name: now });
export const removeLora = (name) => change({ loras: draft.value.loras.filter((lora) => lora.name !== name) });
export function moveLora(name, by) {
  const loras = [...draft.value.loras];
  const from = loras.findIndex((lora) => lora.name === name);
  const [lora] = loras.splice(from, 1);
  loras.splice(Math.max(0, from + by), 0, lora);
  change({ loras });
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
export const holdsWord = (prompt, word) => new RegExp(`(^|[^\\p{L}\\p{N}_])${escaped(word)}($|[^\\p{L}\\p{N}_])`, "iu").test(prompt);

/** A word at the front of the prompt, or gone from it. */
export function toggleWord(word) {
  const { prompt } = draft.value;
  if (!holdsWord(prompt, word)) return change({ prompt: prompt.trim() ? `${word}, ${prompt}` : word });
  const left = prompt.replace(new RegExp(`(^|,)\\s*${escaped(word)}\\s*(?=,|$)`, "iu"), "$1");
  change({ prompt: left.replace(/^\s*,\s*/, "").replace(/,\s*,/g, ",").trim() });
}
