"""Other programs that `pictures.py` measures: servers with ComfyUI's interface, and stable-diffusion.cpp."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peer_server import started

KINDS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras")


def comfyui_command(folder: Path, models: Path, paths: Path) -> str:
    """The command that starts a ComfyUI of a folder on the processor; `paths` is written, which tells it
    where the models are."""
    main = folder.resolve() / "main.py"
    if not main.is_file():
        raise SystemExit(f"{folder} holds no main.py: name the folder of a ComfyUI with --comfyui")
    named = {"base_path": str(models.resolve()), **{kind: kind for kind in KINDS}}
    paths.write_text(json.dumps({"measured": named}))  # which is YAML too
    words = [sys.executable, str(main), "--cpu", "--use-pytorch-cross-attention", "--port", "{port}"]
    return shlex.join([*words, "--extra-model-paths-config", str(paths.resolve())])


def served(command: str, models: Path, graph: Mapping[str, Any]) -> dict[str, float]:
    """Seconds from a server's start to its first picture, and for a second one."""
    words = [word.replace("{models}", str(models.resolve())) for word in shlex.split(command)]
    begun = time.perf_counter()
    with started(words) as server:
        found = {"ready": time.perf_counter() - begun}
        for which, seed in (("first picture", 1), ("second picture", 2)):
            before = begun if seed == 1 else time.perf_counter()
            server.draw(seeded(graph, seed))
            found[which] = time.perf_counter() - before
    return found


def seeded(graph: Mapping[str, Any], seed: int) -> dict[str, Any]:
    changed = json.loads(json.dumps(graph))
    for node in changed.values():
        for name in ("seed", "noise_seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed
    return changed


def drawn(program: str, models: Path, graph: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a program that draws the workflow's picture and ends: the binary of stable-diffusion.cpp, or
    a command with fields in braces (`fields`)."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "picture.png"
        words = [*command_of(program, models, graph, output)]
        begun = time.perf_counter()
        done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        seconds = time.perf_counter() - begun
        if done.returncode or not output.is_file():
            said = done.stderr.decode(errors="replace")[-2000:]
            raise SystemExit(f"{words[0]} wrote no picture (exit code {done.returncode}): {said}")
        return {"first picture": seconds}


def command_of(program: str, models: Path, graph: Mapping[str, Any], output: Path) -> Iterator[str]:
    """The words of the command line."""
    known = {**fields(models, graph), "output": str(output)}
    if "{" in program:
        yield from (word.format(**known) for word in shlex.split(program))
        return
    yield program
    for option, name in OPTIONS.items():
        if name in known:
            yield from (option, str(known[name]))
    yield from ("-t", str(threads()))


OPTIONS = {
    **{"-m": "checkpoint", "--diffusion-model": "network", "--vae": "vae", "--lora-model-dir": "loras"},
    **{"--clip_l": "clip_l", "--clip_g": "clip_g", "--t5xxl": "t5xxl", "--llm": "llm"},
    **{
        "-p": "positive",
        "-n": "negative",
        "--steps": "steps",
        "--seed": "seed",
        "-W": "width",
        "-H": "height",
    },
    **{"--cfg-scale": "cfg", "--guidance": "guidance", "--flow-shift": "shift", "-o": "output"},
    **{"--sampling-method": "sampler_name", "--scheduler": "schedule"},
}
"""stable-diffusion.cpp's options → `fields`."""

SCHEDULES = {"normal": "discrete", "simple": "simple", "karras": "karras", "exponential": "exponential"}


def fields(models: Path, graph: Mapping[str, Any]) -> dict[str, object]:
    """What a workflow says, by the names that commands may have in braces: files of its loaders, prompts
    (with LoRAs in them, as stable-diffusion.cpp wants), the inputs of its nodes by their own names."""
    found: dict[str, object] = {}
    words = ""
    for node in graph.values():
        inputs = node["inputs"]
        found |= {name: value for name, value in inputs.items() if not isinstance(value, list)}
        match node["class_type"]:
            case "CheckpointLoaderSimple":
                found["checkpoint"] = _file(models, "checkpoints", inputs["ckpt_name"])
            case "UNETLoader":
                found["network"] = _file(models, "diffusion_models", inputs["unet_name"])
            case "VAELoader":
                found["vae"] = _file(models, "vae", inputs["vae_name"])
            case "CLIPLoader" | "DualCLIPLoader" | "TripleCLIPLoader":
                names = [value for name, value in inputs.items() if name.startswith("clip_name")]
                found |= {_encoder(name): _file(models, "text_encoders", name) for name in names}
            case "LoraLoader" | "LoraLoaderModelOnly":
                lora = _file(models, "loras", inputs["lora_name"])
                found["loras"] = lora.parent
                words += f"<lora:{lora.stem}:{inputs['strength_model']}>"
            case _:
                pass
    sampler = next(node["inputs"] for node in graph.values() if "positive" in node["inputs"])
    for side in ("positive", "negative"):
        found[side] = _text(graph, sampler[side][0])
    found["positive"] = f"{found['positive']}{words}"
    found["schedule"] = SCHEDULES.get(str(found.get("scheduler")), "discrete")
    return found


def _file(models: Path, kind: str, name: str) -> Path:
    return (models / kind / name.replace("\\", "/")).resolve()


def _encoder(name: str) -> str:
    """Which of the options a text encoder's file is for, by its name."""
    return next((kind for kind in ("clip_l", "clip_g", "t5xxl") if kind in name), "llm")


def _text(graph: Mapping[str, Any], node: str) -> str:
    """The prompt behind a conditioning."""
    inputs = graph[node]["inputs"]
    return inputs["text"] if "text" in inputs else _text(graph, inputs["conditioning"][0])


def threads() -> int:
    """As many as torch takes here."""
    import torch

    return torch.get_num_threads()
