"use strict";

const $ = (id) => document.getElementById(id);
const shown = new Map();

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

async function call(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(problem(body) || `${answer.status} ${answer.statusText}`);
  return body;
}

function problem(body) {
  const error = body.error;
  if (!error) return body.detail ? JSON.stringify(body.detail) : "";
  const lines = [typeof error === "string" ? error : [error.message, error.details].filter(Boolean).join(": ")];
  for (const [id, node] of Object.entries(body.node_errors || {}))
    for (const found of node.errors) lines.push(`node ${id} (${node.class_type}): ${found.message}: ${found.details}`);
  return lines.join("\n");
}

$("file").addEventListener("change", async () => {
  const file = $("file").files[0];
  if (file) $("workflow").value = await file.text();
});

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("problem").textContent = "";
  try {
    const workflow = JSON.parse($("workflow").value);
    const job = await call("v1/jobs", { method: "POST", body: JSON.stringify({ workflow, previews: true }) });
    show(job);
  } catch (error) {
    $("problem").textContent = error.message;
  }
});

function show(job) {
  let item = shown.get(job.id);
  if (!item) {
    item = element("li");
    $("jobs").prepend(item);
    shown.set(job.id, item);
  }
  item.replaceChildren();
  element("strong", `${job.status}`, item);
  element("span", ` ${job.id} `, item);
  if (job.status === "pending" || job.status === "running") {
    const cancel = element("button", "Cancel", item);
    cancel.addEventListener("click", () => call(`v1/jobs/${job.id}/cancel`, { method: "POST" }));
    const bar = element("progress", undefined, item);
    const preview = element("img", undefined, item);
    preview.alt = "preview";
    preview.hidden = true;
    follow(job.id, bar, preview);
  }
  if (job.error) element("p", job.error.message, item);
  for (const warning of job.warnings) element("p", `warning: ${warning}`, item);
  receipts(job.receipts, item);
  for (const file of job.outputs) {
    const picture = element("img", undefined, item);
    picture.alt = file.filename;
    picture.src = file.url;
  }
}

function receipts(found, item) {
  if (!found.length) return;
  const table = element("table", undefined, item);
  const head = element("tr", undefined, table);
  for (const column of ["node", "LoRA", "model", "clip", "placed", "unplaced", "warnings"]) element("th", column, head);
  for (const receipt of found) {
    const row = element("tr", undefined, table);
    const placed = (receipt.components || []).reduce((sum, part) => sum + (part.matched || 0), 0);
    const values = [receipt.node, receipt.name || receipt.file, receipt.strength_model, receipt.strength_clip,
      receipt.components ? placed : "", (receipt.unplaced || []).length, (receipt.warnings || []).join("; ")];
    for (const value of values) element("td", String(value ?? ""), row);
  }
}

function follow(id, bar, preview) {
  const events = new EventSource(`v1/jobs/${id}/events`);
  events.addEventListener("progress", (event) => {
    const step = JSON.parse(event.data);
    bar.max = step.max;
    bar.value = step.value;
    if (step.preview) {
      preview.hidden = false;
      preview.src = `data:image/jpeg;base64,${step.preview}`;
    }
  });
  const end = async () => {
    events.close();
    show(await call(`v1/jobs/${id}`));
  };
  for (const kind of ["completed", "failed", "cancelled", "quarantined"]) events.addEventListener(kind, end);
}

async function start() {
  try {
    const queue = await call("v1/queue");
    $("state").textContent = `${queue.pending} waiting, ${queue.running} running${queue.paused ? ", paused" : ""}`;
    for (const job of (await call("v1/jobs?limit=10")).jobs.reverse()) show(job);
  } catch (error) {
    $("state").textContent = error.message;
  }
}

start();
