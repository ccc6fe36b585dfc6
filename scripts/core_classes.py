"""Writes src/loraloom/workflow/data/core_classes.json, the table of ComfyUI's node classes.

    python scripts/core_classes.py OBJECT_INFO.json [TEMPLATES_DIR]

OBJECT_INFO.json is the answer of a ComfyUI server to /object_info. File lists in it are those of that
machine and become folder names. TEMPLATES_DIR holds workflows in UI format: classes of ComfyUI's core that
the server did not know yet are added from them, with the input names and the widget order they show.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TABLE = Path(__file__).parents[1] / "src" / "loraloom" / "workflow" / "data" / "core_classes.json"

FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "existing_lora": "loras",
    "vae_name": "vae",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "clip_name4": "text_encoders",
    "unet_name": "diffusion_models",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "config_name": "configs",
    "model_path": "diffusers",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
    "image": "input",
    "audio": "input",
    "file": "input",
    "model_file": "input",
}
BY_CLASS = {
    ("CLIPVisionLoader", "clip_name"): "clip_vision",
    ("UpscaleModelLoader", "model_name"): "upscale_models",
    ("LoadLatent", "latent"): "input_latents",
    ("ModelPatchLoader", "name"): "model_patches",
    ("LatentUpscaleModelLoader", "model_name"): "latent_upscale_models",
    ("LTXVAudioVAELoader", "ckpt_name"): "checkpoints",
    ("LTXAVTextEncoderLoader", "text_encoder"): "text_encoders",
    ("LTXAVTextEncoderLoader", "ckpt_name"): "checkpoints",
}
# Choices that ComfyUI adds to a list of files.
BESIDE_FILES = ("pixel_space", "[None]")
# Widgets of classes whose nodes never name all of them.
SIZE = ["width", "height"]
NAMES = {
    "EmptyFlux2LatentImage": [*SIZE, "batch_size"],
    "EmptyHiDreamO1LatentImage": [*SIZE, "batch_size"],
    "EmptyHunyuanVideo15Latent": [*SIZE, "length", "batch_size"],
    "EmptyQwenImageLayeredLatentImage": [*SIZE, "layers", "batch_size"],
    "HunyuanVideo15ImageToVideo": [*SIZE, "length", "batch_size"],
    "HunyuanVideo15SuperResolution": ["noise_augmentation"],
    "DualModelGuider": ["cfg"],
    "Flux2Scheduler": ["steps", *SIZE],
}
# Further widgets of choices that no workflow at hand makes.
VARIANTS = {
    ("ResizeImageMaskNode", "resize_type"): {
        "scale by multiplier": ["multiplier"],
        "scale shorter dimension": ["shorter_size"],
        "scale width": ["width"],
        "scale height": ["height"],
        "scale total pixels": ["megapixels"],
        "match size": ["crop"],
        "scale to multiple": ["multiple"],
    },
}
# Choices that newer versions of ComfyUI add.
NEWER_CHOICES = {
    ("CLIPLoader", "type"): (
        "flux2 ovis longcat_image cogvideox lens pixeldit ideogram4 boogu krea2 joyimage mage minimax yue2"
        " flux3 moss_image fibo2"
    ),
    ("FluxKontextMultiReferenceLatentMethod", "reference_latents_method"): "index_timestep_zero",
    ("DualCLIPLoader", "type"): "hunyuan_video_15 kandinsky5 kandinsky5_image ltxv newbie ace",
}
# Outputs that classes got later, by the workflows that use them.
LATER_OUTPUTS = {
    "TextGenerate": [("thinking", "STRING")],
    "PreviewAny": [("STRING", "STRING")],
    "SaveImage": [("images", "IMAGE")],
    "PreviewImage": [("images", "IMAGE")],
    "MaskPreview": [("mask", "MASK")],
    "SaveVideo": [("video", "VIDEO")],
    "SaveSVGNode": [("svg", "SVG")],
}
# Inputs that they got later.
LATER_INPUTS = {
    "TextGenerate": [["system_prompt", "STRING", {"forceInput": True}], ["mtp", "COMBO"]],
}
FRONTEND_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode", "GetNode", "SetNode"}


def row(name: str, entry: dict) -> dict:
    """One class of /object_info as a row of the table."""
    out: dict = {}
    for section, key in (("required", "inputs"), ("optional", "optional")):
        rows = [input_row(name, i, spec) for i, spec in entry["input"].get(section, {}).items()]
        if rows:
            out[key] = rows
    hidden = entry["input"].get("hidden", {})
    if hidden:
        out["hidden"] = {k: v[0] if isinstance(v, list) else v for k, v in hidden.items()}
    out["outputs"] = [
        [n, t, True] if is_list else ([n, t] if n != t else t)
        for n, t, is_list in zip(entry["output_name"], entry["output"], entry["output_is_list"], strict=True)
    ]
    out["outputs"] += [[n, t, False, True] for n, t in LATER_OUTPUTS.get(name, ())]
    if entry["display_name"] != name:
        out["title"] = entry["display_name"]
    out["category"] = entry["category"]
    if entry["python_module"] != "nodes":
        out["module"] = entry["python_module"]
    for flag in ("output_node", "deprecated", "experimental"):
        if entry.get(flag):
            out[flag] = True
    if "api_node" in entry:
        out["api_node"] = entry["api_node"]
    return out


def input_row(class_name: str, name: str, spec: list) -> list:
    kind, options = spec[0], dict(spec[1]) if len(spec) > 1 else {}
    listed = isinstance(kind, list)
    choices = list(kind) if listed else list(options.get("options", []))
    if not listed and "options" in options:
        del options["options"]
        if "multiselect" not in options:
            options["options"] = []
    kind = "COMBO" if listed else kind
    fixed: dict = {}
    if kind == "COMBO" and "remote" not in options:
        folder = BY_CLASS.get((class_name, name)) or FOLDERS.get(name)
        files = not choices or any(str(c).endswith((".safetensors", ".yaml")) for c in choices)
        if files and folder:
            fixed["folders"] = [folder, *(["tiny_vae"] if folder == "vae" else [])]
            choices = [c for c in choices if c in BESIDE_FILES]
        choices += NEWER_CHOICES.get((class_name, name), "").split()
        if choices:
            fixed["choices"] = choices
    out: list = [name, kind]
    if options or fixed:
        out.append(options)
    if fixed:
        out.append(fixed)
    return out


def share_lists(classes: dict) -> dict:
    """Long lists of choices that several classes offer, taken out by name."""
    lists: dict = {}
    for entry in classes.values():
        for spec in (*entry.get("inputs", ()), *entry.get("optional", ())):
            choices = spec[3].get("choices") if len(spec) > 3 else None
            if choices and choices[0] == "euler":
                lists["samplers"] = choices
                spec[3]["choices"] = "samplers"
            elif choices and choices[:2] == ["simple", "sgm_uniform"]:
                lists["schedulers"] = choices
                spec[3]["choices"] = "schedulers"
    return lists


def nodes_of(template: dict) -> list[dict]:
    scopes = [template, *template.get("definitions", {}).get("subgraphs", [])]
    return [node for scope in scopes for node in scope["nodes"]]


def newer_classes(folder: Path, known: set[str]) -> dict:
    """Classes of ComfyUI's core that only the templates know."""
    seen: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        template = json.loads(path.read_text("utf-8"))
        if not isinstance(template, dict) or "nodes" not in template:
            continue
        for node in nodes_of(template):
            core = node["properties"].get("cnr_id") == "comfy-core"
            if core and node["type"] not in known | FRONTEND_ONLY and len(node["type"]) < 36:
                seen.setdefault(node["type"], []).append(node)
    return {name: newer_row(name, nodes) for name, nodes in sorted(seen.items())}


def newer_row(name: str, nodes: list[dict]) -> dict:
    """What the nodes of a class show: sockets, widgets in their order, outputs.

    Nothing says which inputs are required, nor which values are allowed: none is, and all are.
    """
    types: dict[str, set[str]] = {}
    widget_names: dict[str, None] = {}
    for node in nodes:
        for slot in node.get("inputs") or ():
            if "." not in slot["name"] or not slot.get("widget"):
                types.setdefault(slot["name"], set()).add(str(slot["type"]))
            if slot.get("widget") and "." not in slot["name"]:
                widget_names[slot["name"]] = None
    order = NAMES.get(name) or widget_order(nodes) or list(widget_names)
    sockets = [n for n in types if n not in widget_names and n not in order]
    rows = [[n, one_type(types[n])] for n in sockets]
    rows.extend(newer_widget(name, widget, types, nodes) for widget in order)
    rows += LATER_INPUTS.get(name, [])
    outputs = max((node.get("outputs") or [] for node in nodes), key=len)
    made = []
    for index, output in enumerate(outputs):
        seen = {str(n["outputs"][index]["type"]) for n in nodes if len(n.get("outputs") or ()) > index}
        kind = one_type(seen)
        made.append([output["name"], kind] if output["name"] != kind else kind)
    made += [[n, t, False, True] for n, t in LATER_OUTPUTS.get(name, ())]
    out: dict = {"optional": rows, "outputs": made, "newer": True}
    if not any(o.get("links") for node in nodes for o in node.get("outputs") or ()):
        out["output_node"] = True
    return out


def one_type(seen: set[str]) -> str:
    """The socket type that nodes of a class show; one that adapts to its links is any type."""
    return next(iter(seen)) if len(seen) == 1 else "*"


def named_values(nodes: list[dict]) -> list[dict]:
    return [n["widgets_values_named"] for n in nodes if n.get("widgets_values_named")]


def widget_order(nodes: list[dict]) -> list[str]:
    """The widget names of the class, in order, from the node that names most of its values."""
    best: dict = max(named_values(nodes), key=len, default={})
    return [n for n in best if "." not in n and n not in ("control_after_generate", "upload", "audioUI")]


def variants(widget: str, nodes: list[dict]) -> dict[str, list[str]]:
    """The further widgets that a choice brings with it ("resize_type.width"), by choice."""
    found: dict[str, list[str]] = {}
    for named in named_values(nodes):
        parts = [n.removeprefix(f"{widget}.") for n in named if n.startswith(f"{widget}.")]
        parts = [n for n in parts if n != "control_after_generate"]
        if parts and isinstance(named.get(widget), str):
            best = found.setdefault(named[widget], parts)
            found[named[widget]] = max(best, parts, key=len)
    return found


def newer_widget(name: str, widget: str, types: dict, nodes: list[dict]) -> list:
    named = named_values(nodes)
    if widget in types:
        kind = one_type(types[widget])
    elif any(widget in n for n in named):
        kind = value_type([n.get(widget) for n in named])
    else:
        kind = "FLOAT" if widget in ("cfg", "noise_augmentation") else "INT"
    options: dict = {}
    if kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
        options["widgetType"] = kind
    if any("control_after_generate" in n for n in named) and "seed" in widget:
        options["control_after_generate"] = True
    choices = {**VARIANTS.get((name, widget), {}), **variants(widget, nodes)}
    if choices:
        kind, options["variants"] = "COMBO", choices
        options.pop("widgetType", None)
    folder = BY_CLASS.get((name, widget)) or (FOLDERS.get(widget) if kind == "COMBO" else None)
    fixed = {"folders": [folder]} if folder and folder != "input" else {}
    return [widget, kind, *([options] if options or fixed else []), *([fixed] if fixed else [])]


def value_type(values: list) -> str:
    """The type of a widget without a socket, by the values that its nodes hold."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return "FLOAT"
    names = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
    return names.get(next(iter(kinds)), "*") if len(kinds) == 1 else "*"


def main() -> None:
    info = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    classes = {name: row(name, entry) for name, entry in info.items()}
    lists = share_lists(classes)
    if len(sys.argv) > 2:
        classes.update(newer_classes(Path(sys.argv[2]), set(info)))
    lines = [
        f"{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'), ensure_ascii=False)}"
        for name, entry in classes.items()
    ]
    body = ",\n".join(lines)
    TABLE.write_text(f'{{"lists":{json.dumps(lists)},\n"classes":{{\n{body}\n}}}}\n', "utf-8")


main()
