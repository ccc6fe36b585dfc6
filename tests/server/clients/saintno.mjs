// @saintno/comfyui-sdk: a picture by CallWrapper. Arguments: server address, API workflow as JSON.
import { CallWrapper, ComfyApi, PromptBuilder } from "@saintno/comfyui-sdk";

const [address, workflow] = process.argv.slice(2);
const api = new ComfyApi(address);
await api.init(5, 500).waitForReady();
const builder = new PromptBuilder(JSON.parse(workflow), [], ["images"]).setOutputNode("images", "2");
const result = await new CallWrapper(api, builder).onFailed((error) => console.error(error)).run();
console.log(JSON.stringify(result ? result.images.images : null));
process.exit(result ? 0 : 1);
