// Fields and small parts that every view uses.
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "./html.js";
import { Icon } from "./icons.js";

/** off: does nothing for now, and keeps the keyboard's focus, which a disabled button would lose. */
export const IconButton = ({ icon, label, off = false, onClick, ...rest }) =>
  html`<button type="button" class="icon-button" title=${label} aria-label=${label} aria-disabled=${off ? "true" : undefined} onClick=${off ? undefined : onClick} ...${rest}><${Icon} name=${icon} /></button>`;

export const Button = ({ icon, kind = "", children, ...rest }) =>
  html`<button type="button" class=${`button ${kind}`} ...${rest}>${icon && html`<${Icon} name=${icon} />`}${children}</button>`;

const clamp = (value, low, high) => Math.min(high ?? Infinity, Math.max(low ?? -Infinity, value));

/** A number that is taken when it is one; half-typed text stays as it is until then. */
export function NumberField({ value, onChange, low, high, step = 1, whole = false, label, wide, id, ...rest }) {
  const [text, setText] = useState(String(value));
  useEffect(() => setText(String(value)), [value]);
  const take = (typed) => {
    const big = whole && /^\d{16,}$/.test(typed.trim()) ? BigInt(typed.trim()) : null;
    const number = big ?? Number(typed.replace(",", "."));
    if (typed.trim() === "" || (big === null && !Number.isFinite(number))) return setText(String(value));
    const taken = big ?? clamp(whole ? Math.round(number) : number, low, high);
    setText(String(taken));
    if (taken !== value) onChange(taken);
  };
  return html`<input id=${id} class=${`input number ${wide ? "wide" : ""}`} type="text" inputmode=${whole ? "numeric" : "decimal"} aria-label=${label}
    value=${text} onInput=${(e) => setText(e.target.value)} onChange=${(e) => take(e.target.value)}
    onKeyDown=${(e) => {
      if (e.key !== "ArrowUp" && e.key !== "ArrowDown") return;
      e.preventDefault();
      const next = clamp(Number(value) + (e.key === "ArrowUp" ? step : -step), low, high);
      onChange(whole ? Math.round(next) : Number(next.toFixed(4)));
    }} ...${rest} />`;
}

/** A slider with its number beside it. The number may go beyond the slider. */
export function Slider({ label, value, onChange, low, high, step = 1, whole = false, numberLow = low, numberHigh, hideLabel, disabled }) {
  const id = useId();
  const share = `${(100 * (clamp(Number(value), low, high) - low)) / (high - low)}%`;
  return html`<div class="slider">
    <label class=${hideLabel ? "hidden-text" : "label"} for=${id}>${label}</label>
    ${!hideLabel && html`<${NumberField} label=${`${label}, number`} value=${value} onChange=${onChange} low=${numberLow} high=${numberHigh} step=${step} whole=${whole} />`}
    <input id=${id} type="range" style=${{ "--share": share, gridColumn: hideLabel ? "1" : "1 / -1" }} min=${low} max=${high} step=${step} disabled=${disabled}
      value=${Number(value)} onInput=${(e) => onChange(Number(e.target.value))} />
    ${hideLabel && html`<${NumberField} label=${`${label}, number`} value=${value} onChange=${onChange} low=${numberLow} high=${numberHigh} step=${step} whole=${whole} />`}
  </div>`;
}

export function Select({ label, value, options, onChange, empty, hideLabel }) {
  const id = useId();
  const entries = options.map((option) => (typeof option === "object" && option !== null ? option : { value: option, text: String(option) }));
  const known = entries.some((entry) => entry.value === value);
  return html`<div>
    <label class=${hideLabel ? "hidden-text" : "label"} for=${id}>${label}</label>
    <select id=${id} class="select" value=${String(value ?? "")} onChange=${(e) => {
      const found = entries.find((entry) => String(entry.value) === e.target.value);
      onChange(found ? found.value : e.target.value);
    }}>
      ${empty !== undefined && html`<option value="">${empty}</option>`}
      ${!known && value !== "" && value !== undefined && value !== null && html`<option value=${String(value)}>${String(value)} (missing)</option>`}
      ${entries.map((entry) => html`<option key=${entry.value} value=${String(entry.value)}>${entry.text}</option>`)}
    </select>
  </div>`;
}

/** A text field that grows with its text. */
export function TextArea({ label, value, onChange, tall, placeholder, hideLabel, ...rest }) {
  const id = useId();
  const field = useRef(null);
  useLayoutEffect(() => {
    const area = field.current;
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 2, 420)}px`;
  }, [value]);
  return html`<div>
    <label class=${hideLabel ? "hidden-text" : "label"} for=${id}>${label}</label>
    <textarea id=${id} ref=${field} class=${`text ${tall ? "tall" : ""}`} rows="2" placeholder=${placeholder} value=${value}
      onInput=${(e) => onChange(e.target.value)} ...${rest}></textarea>
  </div>`;
}

export function TextField({ label, value, onChange, hideLabel, ...rest }) {
  const id = useId();
  return html`<div><label class=${hideLabel ? "hidden-text" : "label"} for=${id}>${label}</label>
    <input id=${id} class="input" type="text" value=${value} onInput=${(e) => onChange(e.target.value)} ...${rest} /></div>`;
}

export const Switch = ({ label, on, onChange }) =>
  html`<label class="switch" title=${label}><input type="checkbox" role="switch" aria-label=${label} checked=${on} onChange=${(e) => onChange(e.target.checked)} /><span></span></label>`;

export const Check = ({ label, on, onChange }) =>
  html`<label class="check"><input type="checkbox" checked=${on} onChange=${(e) => onChange(e.target.checked)} />${label}</label>`;

/** A modal sheet; closes by Escape, its button, and a click beside it. */
export function Sheet({ title, onClose, onKeyDown, wide, children, actions }) {
  const dialog = useRef(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog ref=${dialog} class=${`sheet ${wide ? "wide" : ""}`} aria-labelledby=${id}
    onClose=${onClose} onKeyDown=${onKeyDown} onClick=${(e) => e.target === dialog.current && dialog.current.close()}>
    <div class="sheet-head"><h2 id=${id} class="clip">${title}</h2><div class="row">${actions}<${IconButton} icon="close" label="Close" onClick=${() => dialog.current.close()} /></div></div>
    <div class="sheet-body">${children}</div>
  </dialog>`;
}

/** As much room as a picture of this size takes without scrolling. size: {width, height}, null while it is not known. */
export const CompareFrame = ({ size, children }) => html`<div class="compare-frame" style=${{ "--ratio": size ? size.width / size.height : 1 }}>${children}</div>`;

/** Two pictures on one place, and a seam between them that moves. */
export function Compare({ left, right, leftName, rightName }) {
  const [cut, setCut] = useState(50);
  return html`<div class="compare" style=${{ "--cut": `${cut}%` }}>
    <img src=${left} alt=${leftName} />
    <div class="over"><img src=${right} alt=${rightName} /></div>
    <span class="side left clip" aria-hidden="true">${leftName}</span><span class="side right clip" aria-hidden="true">${rightName}</span>
    <input type="range" min="0" max="100" value=${cut} aria-label=${`Seam between ${leftName} and ${rightName}`} aria-valuetext=${`${cut} % ${leftName}`} onInput=${(e) => setCut(Number(e.target.value))} />
    <span class="seam" aria-hidden="true"></span>
  </div>`;
}

const STILL_MILLISECONDS = 100;

/** A picture in a long list: asked for once it has been there for a moment, given up when it is scrolled away. */
export function Thumbnail({ src }) {
  const picture = useRef(null);
  useEffect(() => {
    const image = picture.current;
    const timer = setTimeout(() => {
      image.src = src;
    }, STILL_MILLISECONDS);
    return () => {
      clearTimeout(timer);
      image.removeAttribute("src");
    };
  }, [src]);
  return html`<img ref=${picture} alt="" />`;
}

export const Empty = ({ icon, title, children }) => html`<div class="empty"><${Icon} name=${icon} /><strong>${title}</strong><div class="small">${children}</div></div>`;

export function Trouble({ trouble, children }) {
  return html`<div class="callout" role="alert"><strong>${trouble.what}</strong><p class="small">${trouble.advice}</p>
    ${trouble.where && html`<p class="tiny soft">At: ${trouble.where}</p>`}
    ${trouble.details && html`<details><summary>Details</summary><pre class="details" tabindex="0">${trouble.details}</pre></details>`}
    ${children}</div>`;
}

export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  if (passed < 50) return "just now";
  if (passed < 3000) return `${Math.max(1, Math.round(passed / 60))} min ago`;
  const time = new Date(seconds * 1000);
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return new Date().toDateString() === time.toDateString() ? clock : `${time.toLocaleDateString([], { day: "numeric", month: "short" })}, ${clock}`;
}

export function bytes(count) {
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (count >= factor) return `${(count / factor).toFixed(count >= 10 * factor ? 0 : 1)} ${unit}`;
  return `${count} bytes`;
}

/** A base model in a list: its family is what tells, the usual suffix is not. */
export const baseLabel = (base) => [base.name.replace(/\.safetensors$/i, ""), base.title].filter(Boolean).join(" · ");

export const stem = (name) => name.split("/").pop().replace(/\.(safetensors|sft|ckpt|pt|bin)$/i, "");
