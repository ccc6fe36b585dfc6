// Files that are dropped anywhere on the page: workflows open on the desk, LoRAs land in the library.
import { html, useEffect, useState } from "./html.js";
import { Icon } from "./icons.js";
import * as api from "./api.js";
import { stem } from "./controls.js";
import { addLora } from "./draft.js";
import { library, loadLibrary } from "./library_state.js";
import { attempt, go, place, tell } from "./state.js";
import { openWorkflowFile } from "./workflow_form.js";

const WEIGHTS = /\.(safetensors|sft|ckpt|pth?|bin)$/i;

/** All LoRAs among the files, and the first of the others as a workflow. */
export async function openFiles(list) {
  const files = [...list];
  for (const file of files.filter((one) => WEIGHTS.test(one.name))) await keepLora(file);
  const other = files.find((one) => !WEIGHTS.test(one.name));
  if (other) await openWorkflowFile(other);
}

/** Put a LoRA into the library, and into the drawing unless it is the library that is looked at. */
async function keepLora(file) {
  tell(`Putting ${file.name} into the library …`);
  const done = await attempt(() => api.upload(`v1/loras?${api.query({ name: file.name })}`, file));
  if (!done) return;
  await attempt(() => loadLibrary(true));
  tell(`${stem(done.name)} is in the library.`);
  if (place.value.view === "library") return;
  addLora(done.name, library.value.byName.get(done.name));
  go("/draw");
}

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

export function DropPlace() {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const enter = (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event) => event.relatedTarget === null && setOver(false);
    const drop = (event) => {
      setOver(false);
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      openFiles(event.dataTransfer.files);
    };
    const heard = { dragover: enter, dragleave: leave, drop };
    for (const [kind, listener] of Object.entries(heard)) document.addEventListener(kind, listener);
    return () => Object.entries(heard).forEach(([kind, listener]) => document.removeEventListener(kind, listener));
  }, []);
  return over && html`<div class="drop-here"><${Icon} name="file" /><span>Drop a workflow (JSON, a picture that carries one, a page) or a LoRA</span></div>`;
}
