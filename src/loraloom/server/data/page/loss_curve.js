// The loss over steps, smoothed, with the validation loss; the same numbers as a table.
import { html, useId, useLayoutEffect, useRef, useState } from "./html.js";

const HEIGHT = 220;
const EDGE = { left: 52, right: 10, top: 12, bottom: 26 };
const SMOOTH = 0.9;
const ROWS = 10;

/** The exponential mean, without the bias of its start. */
function smoothed(points) {
  let mean = 0;
  let weight = 0;
  return points.map(([step, loss]) => {
    mean = SMOOTH * mean + (1 - SMOOTH) * loss;
    weight = SMOOTH * weight + (1 - SMOOTH);
    return [step, mean / weight];
  });
}

/** Where a scale begins and ends, and its marks: round numbers around all losses, but for a peak that would flatten the rest. */
function scale(losses, others) {
  const sorted = losses.map(([, loss]) => loss).sort((a, b) => a - b);
  const usual = sorted[Math.floor(0.98 * (sorted.length - 1))];
  const rest = others.map(([, loss]) => loss);
  const low = Math.min(sorted[0], ...rest);
  const high = Math.max(Math.min(sorted.at(-1), 2 * usual - low), ...rest);
  const rough = (high - low || Math.abs(high) || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.floor(low / unit);
  const last = Math.max(first + 1, Math.ceil(high / unit));
  const digits = Math.min(20, Math.max(0, -Math.floor(Math.log10(unit))));
  const marks = Array.from({ length: last - first + 1 }, (_, index) => (first + index) * unit);
  return { low: marks[0], high: marks.at(-1), marks, digits };
}

export function LossCurve({ losses, validations, running }) {
  const box = useRef(null);
  const plot = useId();
  const [width, setWidth] = useState(640);
  useLayoutEffect(() => {
    const watcher = new ResizeObserver(([entry]) => setWidth(Math.max(240, Math.round(entry.contentRect.width))));
    watcher.observe(box.current);
    return () => watcher.disconnect();
  }, []);
  return html`<div ref=${box}>${losses.length < 2 ? html`<p class="small soft">${running ? "The first numbers come when the pictures have been encoded." : "It ended before there were numbers to show."}</p>` : drawn(losses, validations, width, plot)}</div>`;
}

function drawn(losses, validations, width, plot) {
  const smooth = smoothed(losses);
  const steps = losses.at(-1)[0];
  const { low, high, marks, digits } = scale(losses, [...smooth, ...validations]);
  const x = (step) => EDGE.left + ((width - EDGE.left - EDGE.right) * step) / steps;
  const y = (loss) => HEIGHT - EDGE.bottom - ((HEIGHT - EDGE.top - EDGE.bottom) * (loss - low)) / (high - low);
  const line = (points) => points.map(([step, loss], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const last = smooth.at(-1);
  return html`<figure class="stack tight"><svg class="curve" viewBox=${`0 0 ${width} ${HEIGHT}`} role="img" aria-label=${`Loss after ${last[0]} steps: ${last[1].toFixed(4)}`}>
    <clipPath id=${plot}><rect x=${EDGE.left} y=${EDGE.top} width=${width - EDGE.left - EDGE.right} height=${HEIGHT - EDGE.top - EDGE.bottom} /></clipPath>
    ${marks.map((mark) => html`<g key=${mark}><line class="curve-grid" x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(mark)} y2=${y(mark)} /><text x=${EDGE.left - 8} y=${y(mark) + 4} text-anchor="end">${mark.toFixed(digits)}</text></g>`)}
    ${[0, 0.5, 1].map((share) => html`<text key=${`x${share}`} x=${x(share * steps)} y=${HEIGHT - 6} text-anchor=${share === 1 ? "end" : share ? "middle" : "start"}>${Math.round(share * steps).toLocaleString()}</text>`)}
    <path class="curve-raw" clip-path=${`url(#${plot})`} d=${line(losses)} />
    <path class="curve-loss" d=${line(smooth)} />
    ${validations.length > 0 && html`<path class="curve-validation" d=${line(validations)} />${validations.map(([step, loss]) => html`<circle key=${step} class="curve-dot" cx=${x(step)} cy=${y(loss)} r="3.5" />`)}`}
  </svg>
  <figcaption class="row wrap tiny soft"><span class="key loss-key">Loss, smoothed ${last[1].toFixed(4)}</span>${validations.length > 0 && html`<span class="key validation-key">Validation ${validations.at(-1)[1].toFixed(4)}</span>`}</figcaption>
  <${Numbers} smooth=${smooth} validations=${validations} /></figure>`;
}

/** Some of the numbers, the last among them. */
function Numbers({ smooth, validations }) {
  const every = Math.ceil(smooth.length / ROWS);
  const shown = smooth.filter((_, index) => (smooth.length - 1 - index) % every === 0);
  const known = (step) => validations.findLast(([at]) => at <= step);
  return html`<details><summary>As numbers</summary><table class="curve-table small numbers"><thead><tr><th scope="col">Step</th><th scope="col">Loss, smoothed</th>${validations.length > 0 && html`<th scope="col">Validation</th>`}</tr></thead>
    <tbody>${shown.map(([step, loss]) => html`<tr key=${step}><th scope="row">${step.toLocaleString()}</th><td>${loss.toFixed(4)}</td>${validations.length > 0 && html`<td>${known(step)?.[1].toFixed(4) ?? ""}</td>`}</tr>`)}</tbody></table></details>`;
}
