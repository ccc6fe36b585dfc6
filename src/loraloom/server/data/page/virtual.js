// Long lists: only what can be seen is there.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";

const SPARE = 6;

/**
 * A list of rows of one height that scrolls in a box of its own. `row(item, index)` draws one; with
 * `least` pixels as their smallest width, rows have several columns. `asked`: what the items are the
 * answer to; another answer begins at its top.
 */
export function VirtualList({ items, height, row, label, keyOf, asked = "", least = 0, gap = 0, className = "" }) {
  const box = useRef(null);
  const [seen, setSeen] = useState({ top: 0, tall: 600, wide: 320 });
  const measure = () => {
    if (!box.current) return;
    const { scrollTop: top, clientHeight: tall, clientWidth: wide } = box.current;
    setSeen((now) => (now.top === top && now.tall === tall && now.wide === wide ? now : { top, tall, wide }));
  };
  useEffect(() => {
    const watcher = new ResizeObserver(measure);
    watcher.observe(box.current);
    return () => watcher.disconnect();
  }, []);
  useLayoutEffect(() => {
    box.current.scrollTop = 0;
    measure();
  }, [asked]);
  const columns = least ? Math.max(1, Math.floor((seen.wide + gap) / (least + gap))) : 1;
  const lines = Math.ceil(items.length / columns);
  const top = Math.min(seen.top, Math.max(0, lines * height - seen.tall)); // where a shorter list will stand
  const first = Math.max(0, Math.floor(top / height) - SPARE);
  const last = Math.min(lines, Math.ceil((top + seen.tall) / height) + SPARE);
  const shown = items.slice(first * columns, last * columns);
  const width = columns > 1 ? (seen.wide - gap * (columns - 1)) / columns : null;
  return html`<div ref=${box} class=${`virtual ${className}`} onScroll=${measure} tabindex="-1">
    <ul aria-label=${label} style=${{ height: `${lines * height}px` }}>
      ${shown.map((item, offset) => {
        const index = first * columns + offset;
        const place = { top: `${Math.floor(index / columns) * height}px`, height: `${height - gap}px` };
        if (width) Object.assign(place, { left: `${(index % columns) * (width + gap)}px`, width: `${width}px` });
        return html`<li key=${keyOf(item)} aria-setsize=${items.length} aria-posinset=${index + 1} style=${place}>${row(item, index)}</li>`;
      })}
    </ul>
  </div>`;
}
