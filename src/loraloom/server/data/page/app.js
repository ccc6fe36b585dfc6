// The page: navigation, views, notices.
import { html, render, useEffect } from "./html.js";
import { Button, IconButton } from "./controls.js";
import { Icon } from "./icons.js";
import { Draw } from "./draw.js";
import { DropPlace } from "./drop.js";
import { Gallery } from "./gallery.js";
import { Library } from "./library.js";
import { Queue } from "./queue.js";
import { Strengths } from "./strengths.js";
import { Training } from "./training.js";
import { loadLibrary } from "./library_state.js";
import { follow, lost, queue } from "./queue_state.js";
import { attempt, dismiss, kept, loadChoices, notices, place, spoken, useStore } from "./state.js";

const look = kept("loraloom.look", { theme: "auto" });
/** For each theme what the button does: the next one, its sign, and what that is called. */
const THEMES = {
  auto: ["light", "sun", "Use light colours"],
  light: ["dark", "moon", "Use dark colours"],
  dark: ["auto", "auto", "Use the system's colours"],
};
const VIEWS = [
  ["draw", "Draw", Draw],
  ["gallery", "Gallery", Gallery],
  ["library", "LoRAs", Library],
  ["queue", "Queue", Queue],
  ["training", "Training", Training],
];
const HIDDEN = { strengths: ["draw", "Strengths", Strengths] };

function wear({ theme }) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function App() {
  const { view } = useStore(place);
  const said = useStore(spoken);
  const gone = useStore(lost);
  const [key, title, View] = VIEWS.find(([name]) => name === view) ?? HIDDEN[view] ?? VIEWS[0];
  useEffect(() => {
    document.title = `${title} · Loraloom`;
    document.getElementById("main")?.scrollTo?.(0, 0);
    window.scrollTo(0, 0);
  }, [view]);
  return html`<a class="skip" href="#main" onClick=${(e) => {
    e.preventDefault();
    document.getElementById("main").focus();
  }}>Skip to content</a>
    <div class="shell">
      <${Nav} current=${key} />
      <main id="main" class=${`main view-${view}`} tabindex="-1">
        ${gone && html`<div class="lost" role="alert"><${Icon} name="warning" />${gone}</div>`}
        <${View} />
      </main>
    </div>
    <${Notices} />
    <${DropPlace} />
    <div class="hidden-text" role="status" aria-live="polite">${said}</div>`;
}

function Nav({ current }) {
  const open = useStore(queue, (state) => (state ? state.running.length + state.waiting_total : 0));
  const { theme } = useStore(look);
  const [next, icon, name] = THEMES[theme];
  return html`<nav class="nav" aria-label="Main">
    <div class="mark"><img src="loraloom/icon.svg" alt="Loraloom" /></div>
    <ul>${VIEWS.map(([key, title]) => html`<li key=${key}><a href=${`#/${key}`} aria-current=${key === current ? "page" : undefined}><${Icon} name=${key} />${title}
      ${key === "queue" && open > 0 && html`<span class="count" aria-label=${`${open} open`}>${open > 99 ? "99+" : open}</span>`}</a></li>`)}</ul>
    <div class="foot"><${IconButton} icon=${icon} label=${name} onClick=${() => look.set({ theme: next })} /></div>
  </nav>`;
}

function Notices() {
  const all = useStore(notices);
  return html`<div class="notices">${all.map((one) => html`<div class=${`notice ${one.bad ? "bad" : ""}`} key=${one.id} role=${one.bad ? "alert" : undefined}>
    <span class="grow body breaks">${one.text}</span>
    ${one.action && html`<${Button} kind="small" onClick=${() => {
      dismiss(one.id);
      one.action.run();
    }}>${one.action.name}<//>`}
    <${IconButton} icon="close" label="Dismiss" onClick=${() => dismiss(one.id)} /></div>`)}</div>`;
}

look.listen(wear);
wear(look.value);
follow();
attempt(loadChoices);
attempt(() => loadLibrary());
render(html`<${App} />`, document.getElementById("app"));
