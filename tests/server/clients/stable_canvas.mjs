// @stable-canvas/comfyui-client: a picture by enqueue. Arguments: server address, API workflow as JSON.
import { Client } from "@stable-canvas/comfyui-client";
import WebSocket from "ws";

const [address, workflow] = process.argv.slice(2);
const client = new Client({ api_host: new URL(address).host, WebSocket, fetch });
client.connect();
const result = await client.enqueue(JSON.parse(workflow), { disable_random_seed: true });
console.log(JSON.stringify(result.images.map((image) => image.data ?? image)));
process.exit(result.images.length ? 0 : 1);
