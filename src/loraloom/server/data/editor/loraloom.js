// Loraloom in the official editor: what a LoRA is, its trigger words, and what it did, on its own node.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const CLASSES = new Set(["LoraLoader", "LoraLoaderModelOnly"]);
const WORDS = "trigger words";
const RECEIPT = "receipt";
const NO_WORDS = "no trigger words known";
const SHOWN = 60;
const known = new Map();

const shorten = (text) => (text.length > SHOWN ? `${text.slice(0, SHOWN - 1)}…` : text);
const say = (severity, detail) => app.extensionManager.toast.add({ severity, summary: "Loraloom", detail, life: 5000 });

/** What the server knows of a LoRA; null where it knows nothing. */
function factsOf(name) {
  if (!known.has(name)) {
    const asked = fetch(`/v1/loras/inspect?name=${encodeURIComponent(name)}`).then((answer) => (answer.ok ? answer.json() : null));
    known.set(name, asked.catch(() => null));
  }
  return known.get(name);
}

/** A widget that workflows neither save nor send. */
function ownWidget(node, kind, name, value, action, options = {}) {
  const widget = node.addWidget(kind, name, value, action, { serialize: false, ...options });
  widget.serialize = false;
  return widget;
}

/** The text fields of the prompts behind a node's CLIP: those that a negative input uses are left out. */
function promptsBehind(node) {
  const found = new Set();
  const seen = new Set();
  const walk = (from) => {
    if (!from || seen.has(from.id)) return;
    seen.add(from.id);
    for (const output of from.outputs ?? []) {
      for (const id of output.links ?? []) {
        const link = from.graph.getLink ? from.graph.getLink(id) : from.graph.links[id];
        const next = link && from.graph.getNodeById(link.target_id);
        if (!next) continue;
        const text = next.widgets?.find((widget) => widget.name === "text");
        if (text && next.type.startsWith("CLIPTextEncode")) {
          if (!isNegative(next)) found.add(text);
        } else walk(next);
      }
    }
  };
  walk(node);
  return [...found];
}

const isNegative = (node) =>
  (node.outputs ?? []).some((output) =>
    (output.links ?? []).some((id) => {
      const link = node.graph.getLink ? node.graph.getLink(id) : node.graph.links[id];
      const next = link && node.graph.getNodeById(link.target_id);
      return next?.inputs?.[link.target_slot]?.name === "negative";
    }),
  );

async function insertWords(node) {
  const facts = await factsOf(node.widgets.find((widget) => widget.name === "lora_name")?.value);
  const words = facts?.triggers ?? [];
  if (!words.length) return say("info", "This LoRA names no trigger words.");
  const fields = promptsBehind(node);
  if (!fields.length) return say("info", `No prompt is connected behind this LoRA. Its words: ${words.join(", ")}`);
  for (const field of fields) {
    const missing = words.filter((word) => !field.value.toLowerCase().includes(word.toLowerCase()));
    if (missing.length) field.value = [missing.join(", "), field.value].filter(Boolean).join(", ");
  }
  node.graph?.setDirtyCanvas?.(true, true);
}

async function showWords(node, name) {
  const facts = await factsOf(name);
  const widget = node.widgets?.find((one) => one.name === WORDS);
  if (!widget) return;
  const words = facts?.triggers ?? [];
  widget.label = words.length ? shorten(`Insert: ${words.join(", ")}`) : NO_WORDS;
  node.graph?.setDirtyCanvas?.(true, true);
}

const percent = (number) => `${number >= 0.1 ? Math.round(100 * number) : (100 * number).toFixed(1)} %`;

function receiptLine(receipt) {
  const effect = receipt.effects?.find((one) => one.component === "model") ?? receipt.effects?.[0];
  return `${receipt.matched}/${receipt.total} modules${effect ? `, changes ${percent(effect.relative)}` : ""}`;
}

function wholeReceipt(receipt) {
  const parts = receipt.components.map((part) => `${part.component} ${part.matched}/${part.total}`);
  const left = receipt.ignored.map((entry) => `${entry.modules.length} left out: ${entry.reason}`);
  const lost = receipt.unplaced.length ? [`${receipt.unplaced.length} without a place`] : [];
  return [`${receipt.name}: for ${receipt.base}`, ...parts, receipt.dialect, receipt.alpha, ...left, ...lost, ...receipt.warnings].join(" · ");
}

/** A node by the id that a run gives it: "57:6" is node 6 in the subgraph of node 57. */
function nodeOf(id) {
  let graph = app.graph;
  const parts = String(id).split(":");
  for (const [depth, part] of parts.entries()) {
    const node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    if (depth === parts.length - 1) return node;
    graph = node?.subgraph;
  }
  return null;
}

async function showReceipts(jobId) {
  const answer = await fetch(`/v1/jobs/${encodeURIComponent(jobId)}`);
  if (!answer.ok) return;
  for (const receipt of (await answer.json()).receipts) {
    const node = receipt.components && nodeOf(receipt.node);
    if (!node) continue;
    const widget = node.widgets?.find((one) => one.name === RECEIPT) ?? ownWidget(node, "button", RECEIPT, null, () => {});
    widget.label = receiptLine(receipt);
    widget.callback = () => say(receipt.complete ? "success" : "warn", wholeReceipt(receipt));
    if (!receipt.complete) say("warn", `${receipt.name ?? "A LoRA"}: ${receipt.total - receipt.matched} of ${receipt.total} modules found no place.`);
    node.graph?.setDirtyCanvas?.(true, true);
  }
}

app.registerExtension({
  name: "loraloom.lora",
  setup() {
    api.addEventListener("execution_success", ({ detail }) => showReceipts(detail.prompt_id).catch(() => {}));
  },
  nodeCreated(node) {
    if (!CLASSES.has(node.comfyClass ?? node.type)) return;
    const name = node.widgets?.find((widget) => widget.name === "lora_name");
    if (!name) return;
    ownWidget(node, "button", WORDS, null, () => insertWords(node)).label = NO_WORDS;
    const before = name.callback;
    name.callback = function (value, ...rest) {
      showWords(node, value);
      return before?.call(this, value, ...rest);
    };
    const configured = node.onConfigure;
    node.onConfigure = function (...values) {
      const result = configured?.apply(this, values);
      showWords(node, name.value);
      return result;
    };
    showWords(node, name.value);
  },
});
