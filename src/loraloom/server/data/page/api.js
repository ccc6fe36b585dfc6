// Calls to the server. Whole numbers beyond 2^53 (seeds) stay exact, as BigInt.

export class Refused extends Error {
  constructor(status, body) {
    super(words(status, body));
    this.status = status;
    this.body = body;
  }
}

const exact = (_key, value, context) =>
  typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value;

const spelled = (_key, value) => (typeof value === "bigint" ? (JSON.rawJSON ? JSON.rawJSON(String(value)) : Number(value)) : value);

export const parse = (text) => JSON.parse(text, exact);
export const write = (value, indent) => JSON.stringify(value, spelled, indent);

async function send(method, path, body, headers) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers });
  } catch {
    throw new Refused(0, { detail: "The server does not answer. Is `loraloom serve` still running?" });
  }
  const text = await answer.text();
  let found = null;
  try {
    found = text ? parse(text) : null;
  } catch {
    found = { detail: text.slice(0, 300) };
  }
  if (!answer.ok) throw new Refused(answer.status, found);
  return found;
}

export const get = (path) => send("GET", path);
export const post = (path, body) => send("POST", path, body === undefined ? undefined : write(body), { "Content-Type": "application/json" });
export const patch = (path, body) => send("PATCH", path, write(body), { "Content-Type": "application/json" });
export const remove = (path) => send("DELETE", path);
export const upload = (path, file, method = "POST") => send(method, path, file, { "Content-Type": "application/octet-stream" });
export const sendForm = (path, form) => send("POST", path, form);

export function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value !== undefined && value !== null && value !== "") found.append(name, value);
  return found.toString();
}

const MODEL_FILE = /\.(safetensors|sft|gguf|ckpt|pth?|bin)$/i;

/** What ComfyUI's interface objects to in one input, in a person's words where those are known. */
function objection(node, found) {
  const value = found.extra_info?.received_value;
  if (found.type === "value_not_in_list" && typeof value === "string" && MODEL_FILE.test(value))
    return `“${value}” is not in its folder. Choose another one, or put it there.`;
  return `${node.class_type}: ${found.message}${found.details ? ` (${found.details})` : ""}`;
}

/** A refusal in words: from our own answers, pydantic's lists, and ComfyUI's error objects. */
function words(status, body) {
  const said = body?.detail ?? body?.error ?? body;
  if (typeof said === "string" && said) return said;
  if (Array.isArray(said)) return said.map((entry) => `${(entry.loc ?? []).filter((part) => part !== "body").join(" ")}: ${entry.msg}`).join("\n");
  if (said && typeof said === "object") {
    const error = said.error ?? said;
    const lines = [];
    for (const node of Object.values(said.node_errors ?? body?.node_errors ?? {}))
      for (const found of node.errors) lines.push(objection(node, found));
    if (!lines.length) lines.push([error.message, error.details].filter(Boolean).join(": "));
    return lines.filter(Boolean).join("\n") || `The server answered ${status}.`;
  }
  if (status === 401) return "This server asks for its token: open it with ?token=… at the end of its address.";
  return `The server answered ${status}.`;
}
