// The loss over steps, smoothed, with the validation loss; the same numbers as a table for who cannot see it.
import { html, useLayoutEffect, useRef, useState } from "./html.js";

const HEIGHT = 220;
const EDGE = { left: 52, right: 10, top: 12, bottom: 26 };
const SMOOTH = 0.9;

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

export function LossCurve({ losses, validations }) {
  const box = useRef(null);
  const [width, setWidth] = useState(640);
  useLayoutEffect(() => {
    const watcher = new ResizeObserver(([entry]) => setWidth(Math.max(240, Math.round(entry.contentRect.width))));
    watcher.observe(box.current);
    return () => watcher.disconnect();
  }, []);
  return html`<div ref=${box}>${drawn(losses, validations, width)}</div>`;
}

function drawn(losses, validations, width) {
  if (losses.length < 2) return html`<p class="small soft">The first numbers come when the pictures have been encoded.</p>`;
  const smooth = smoothed(losses);
  const steps = losses.at(-1)[0];
  const values = [...smooth, ...validations].map(([, loss]) => loss);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const span = high - low || Math.abs(high) || 1;
  const x = (step) => EDGE.left + ((width - EDGE.left - EDGE.right) * step) / steps;
  const y = (loss) => HEIGHT - EDGE.bottom - ((HEIGHT - EDGE.top - EDGE.bottom) * (loss - low)) / span;
  const line = (points) => points.map(([step, loss], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  const last = smooth.at(-1);
  return html`<figure class="stack tight"><svg class="curve" viewBox=${`0 0 ${width} ${HEIGHT}`} role="img" aria-label=${`Loss after ${last[0]} steps: ${last[1].toFixed(4)}`}>
    ${[0, 0.5, 1].map((share) => html`<g key=${share}><line class="curve-grid" x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(low + share * span)} y2=${y(low + share * span)} /><text x=${EDGE.left - 8} y=${y(low + share * span) + 4} text-anchor="end">${(low + share * span).toPrecision(3)}</text></g>`)}
    ${[0, 0.5, 1].map((share) => html`<text key=${`x${share}`} x=${x(share * steps)} y=${HEIGHT - 6} text-anchor=${share === 1 ? "end" : share ? "middle" : "start"}>${Math.round(share * steps).toLocaleString()}</text>`)}
    <path class="curve-raw" d=${line(losses.map(([step, loss]) => [step, Math.min(high + span * 0.05, Math.max(low - span * 0.05, loss))]))} />
    <path class="curve-loss" d=${line(smooth)} />
    ${validations.length > 0 && html`<path class="curve-validation" d=${line(validations)} />${validations.map(([step, loss]) => html`<circle key=${step} class="curve-dot" cx=${x(step)} cy=${y(loss)} r="3.5" />`)}`}
  </svg>
  <figcaption class="row wrap tiny soft"><span class="key loss-key">Loss, smoothed ${last[1].toFixed(4)}</span>${validations.length > 0 && html`<span class="key validation-key">Validation ${validations.at(-1)[1].toFixed(4)}</span>`}</figcaption></figure>`;
}
