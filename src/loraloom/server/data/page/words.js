// A word of a LoRA as a button: a click puts it into the prompt, another takes it out.
import { html } from "./html.js";
import { Icon } from "./icons.js";
import { holdsWord, toggleWord } from "./draft.js";

export function WordChip({ word, prompt, count, onToggle }) {
  const held = holdsWord(prompt, word);
  return html`<button type="button" class="chip" aria-pressed=${held} title=${held ? "In the prompt; a click takes it out" : "A click puts it into the prompt"} onClick=${() => {
    toggleWord(word);
    onToggle?.();
  }}><${Icon} name=${held ? "check" : "plus"} /><span class="clip">${word}</span>${count !== undefined && html`<span class="soft numbers">${count}</span>`}</button>`;
}
