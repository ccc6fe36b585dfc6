"""Texts that a language model among the text encoders writes."""

from __future__ import annotations

from typing import Annotated

from loraloom.engine.node import Choice, NodeRun, Number, Options, Socket, node
from loraloom.errors import InputError
from loraloom.models.text.generate import Drawing, Question, generate_text, split_thought
from loraloom.nodes.sockets import Clip, Image, Prompt
from loraloom.runtime.prompts import embedding_files, loaded
from loraloom.runtime.services import services

KNOBS = {
    "temperature": 0.7,
    "top_k": 64,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
    "seed": 0,
    "presence_penalty": 0.0,
}
"""What `sampling_mode` brings with it when it is on, with what each is otherwise."""

Mode = Annotated[str, Choice(("on", "off")), Options({"variants": {"on": [*KNOBS], "off": []}})]


@node(
    "TextGenerate",
    category="textgen",
    outputs=("generated_text", "thinking"),
    is_changed=embedding_files,
    v3=True,
    python_module="comfy_extras.nodes_textgen",
)
def generate(
    clip: Clip,
    prompt: Prompt,
    image: Image | None = None,
    video: Image | None = None,
    audio: Annotated[object, Socket("AUDIO")] | None = None,
    max_length: Annotated[int, Number(min=1, max=32768)] = 512,
    sampling_mode: Mode = "on",
    thinking: bool = False,
    use_default_template: bool = True,
    system_prompt: Annotated[str, Options({"forceInput": True})] | None = None,
    mtp: Annotated[str, Choice(("auto", "off", "2", "3", "4", "5"))] | None = None,
    *,
    run: NodeRun,
    **said: Annotated[object, Socket("*")],
) -> tuple[str, str]:
    """Let the language model of the text encoders write a text.

    How the next word is drawn has its name behind a point: `sampling_mode.temperature`, … `mtp` speeds up
    models with heads for it, which none of those here has. Where a workflow has it or a system prompt, the
    node is the newer one, whose text is without the thought before it; the older one's has both."""
    if video is not None or audio is not None:
        raise InputError("TextGenerate reads a prompt and pictures here: no videos and no sounds")
    start = "sampling_mode."
    knobs = {name.removeprefix(start): value for name, value in said.items() if name.startswith(start)}
    question = Question(
        prompt,
        is_whole=not use_default_template,
        thinks=thinking,
        pictures=() if image is None else tuple(image[i : i + 1, ..., :3] for i in range(len(image))),
        system=system_prompt or "",
    )
    found = services(run)
    text = generate_text(
        found.memory,
        loaded(clip),
        question,
        found.folders,
        max_length,
        _drawing(knobs) if sampling_mode == "on" else None,
        lambda count: run.progress(count, max_length),
    )
    answer, thought = split_thought(text)
    return text if mtp is None and system_prompt is None else answer, thought


def _drawing(knobs: dict[str, object]) -> Drawing:
    unknown = [name for name in knobs if name not in KNOBS]
    if unknown:
        raise InputError(f"TextGenerate has no input {unknown[0]!r} here; sampling takes {', '.join(KNOBS)}")
    values: dict[str, float] = {}
    for name, otherwise in KNOBS.items():
        value = knobs.get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"sampling_mode.{name} should be a number, not {value!r}")
        values[name] = value
    if values["temperature"] <= 0:
        raise InputError(f"sampling_mode.temperature should be above 0, not {values['temperature']}")
    return Drawing(
        seed=int(values["seed"]),
        temperature=values["temperature"],
        top_k=int(values["top_k"]),
        top_p=values["top_p"],
        min_p=values["min_p"],
        repetition=values["repetition_penalty"],
        presence=values["presence_penalty"],
    )
