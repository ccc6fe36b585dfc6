"""How files spell module names: prefixes × path styles, over the names that a component understands.

A name in a file is `<prefix><path>`, the path dotted or flattened with underscores, in native or diffusers
names. Nothing here lists products: a prefix says which component and style, the component's own tables say
whether the path exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal

from loraloom.lora.component import Component, ComponentName
from loraloom.models.encoder import encoder_kinds
from loraloom.models.recognition import family_named
from loraloom.weights.patch import Target

Style = Literal["flat", "dotted"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A way to begin a module name. encoder: which text encoder: its name, or its number from 1."""

    text: str
    component: ComponentName
    style: Style
    dialect: str
    encoder: str | int | None = None


PREFIXES: tuple[Prefix, ...] = (
    Prefix("lora_unet_", "model", "flat", "kohya"),
    Prefix("lora_transformer_", "model", "flat", "onetrainer-mixture"),
    Prefix("lora_prior_unet_", "model", "flat", "kohya"),
    Prefix("oft_unet_", "model", "flat", "kohya"),
    Prefix("lycoris_", "model", "flat", "lycoris"),
    Prefix("lora_unet.", "model", "dotted", "onetrainer"),
    Prefix("lora_transformer.", "model", "dotted", "onetrainer"),
    Prefix("model.diffusion_model.", "model", "dotted", "native"),
    Prefix("diffusion_model.", "model", "dotted", "native"),
    Prefix("unet.", "model", "dotted", "diffusers"),
    Prefix("transformer.", "model", "dotted", "diffusers"),
)

_ENCODER_PREFIXES: tuple[tuple[str, Style, str], ...] = (
    ("lora_te{}_", "flat", "kohya"),
    ("lora_te{}.", "dotted", "onetrainer"),
    ("text_encoder{}.", "dotted", "diffusers"),
)
MOST_ENCODERS = 4


@cache
def prefixes() -> tuple[Prefix, ...]:
    """All ways to begin a module name: those of text encoders by their number, or by what each is called."""
    found = list(PREFIXES)
    for text, style, dialect in _ENCODER_PREFIXES:
        for number in range(1, MOST_ENCODERS + 1):
            written = f"_{number}" if dialect == "diffusers" else str(number)
            found.append(Prefix(text.format(written), "clip", style, dialect, number))
        found.append(Prefix(text.format(""), "clip", style, dialect, 1))
    for name, kind in encoder_kinds().items():
        for native in kind.lora.native:
            found.append(Prefix(f"text_encoders.{native}.", "clip", "dotted", "native", name))
            found.append(Prefix(f"{native}.", "clip", "dotted", "omi", name))
    return tuple(found)


PEFT_WRAPPER = "base_model.model."
WRAPPERS = (PEFT_WRAPPER, "_orig_mod.", "module.", "state_dict.", "model_state_dict.", "lora_state_dict.")
"""What PEFT, torch.compile, data parallelism and checkpoints put before a path; may stand before or after a
prefix."""


def encoders_in(names: Iterable[str]) -> tuple[str, ...]:
    """Text encoders in the order in which kohya and diffusers number those that a family has."""
    kinds = encoder_kinds()
    known = [name for name in dict.fromkeys(names) if name in kinds]
    return tuple(sorted(known, key=lambda name: kinds[name].lora.place))


REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\.processor\.(to_[qkv])$", r".\1"),
        (r"(?:\.processor)?\.to_out$", r".to_out.0"),
        (r"(\.self_attn)\.to_([qkv])$", r"\1.\2_proj"),
        (r"(\.self_attn)\.to_out(?:\.0)?$", r"\1.out_proj"),
        (r"\.base_layer$", ""),
    )
)
"""Old and foreign path endings → the path of today: attention processors of diffusers 0.16–0.24. Families add
their own."""


@dataclass(frozen=True, slots=True)
class Name:
    """A module name taken apart: which component it is for (None: unsaid) and the path in it.

    slip: what was left out of a name that its program wrote wrongly ("an underscore at the end").
    """

    component: ComponentName | None
    path: str
    style: Style
    dialect: str
    encoder: str | int | None = None
    slip: str = ""


TRAILING, REPEATED, INSIDE = "an underscore at the end", "a prefix twice", "a prefix of another program"


@cache
def _inner() -> re.Pattern[str]:
    """Where a prefix that can be nothing else begins behind a prefix that is unknown."""
    sure = (one.text for one in prefixes() if one.style == "flat" or one.text == "diffusion_model.")
    return re.compile(r"\.(?=(?:" + "|".join(map(re.escape, sure)) + "))")


def take_apart(module: str) -> Name:
    """Wrapper and prefix off a module name. A name without prefix is bare: some component may know it."""
    path, wrapped = _unwrap(module)
    found = next((prefix for prefix in prefixes() if _begins(path, prefix.text)), None)
    slip = ""
    if found is None and (inner := _inner().search(path)):
        path, slip = path[inner.end() :], INSIDE
        found = next((prefix for prefix in prefixes() if _begins(path, prefix.text)), None)
    if found is None:
        return Name(None, path, "dotted", "peft" if wrapped else "bare")
    rest, inner_wrapper = _unwrap(path.removeprefix(found.text))
    while _begins(rest, found.text):
        rest, slip = _unwrap(rest.removeprefix(found.text))[0], REPEATED
    if found.style == "dotted" and any(
        prefix.style == "flat" and _begins(rest, prefix.text) for prefix in prefixes()
    ):
        return replace(take_apart(rest), slip=INSIDE)
    if found.style == "flat":
        rest = rest.lstrip("_")
        while wrapper := next((one for one in _FLAT_WRAPPERS if _begins(rest, one)), None):
            rest, slip = rest.removeprefix(wrapper).lstrip("_"), INSIDE
        if rest.endswith("_"):
            rest, slip = rest.rstrip("_"), TRAILING
        if found.component == "model" and rest.startswith("text_model_"):
            return Name("clip", rest, "flat", found.dialect, 1, slip)  # LyCORIS's own wrapper
    elif found.encoder is not None:
        rest = rest.removeprefix("transformer.")
    dialect = "peft" if (wrapped or inner_wrapper) and found.style == "dotted" else found.dialect
    return Name(found.component, rest, found.style, dialect, found.encoder, slip)


_FLAT_WRAPPERS = (
    "base_model_model_",
    "model_diffusion_model_",
    "diffusion_model_",
    "orig_mod_",
    "state_dict_",
)
"""What may stand between a flat prefix and the path: wrappers that were flattened with it."""


def _begins(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and len(path) > len(prefix)


def _unwrap(path: str) -> tuple[str, bool]:
    """A path without wrappers, and whether PEFT's was among them."""
    wrapped = False
    while wrapper := next((one for one in WRAPPERS if _begins(path, one)), None):
        path, wrapped = path.removeprefix(wrapper), wrapped or wrapper == PEFT_WRAPPER
    return path.replace("._orig_mod.", "."), wrapped


class Names:
    """The names of one component, ready for look-ups in both styles."""

    def __init__(self, component: Component) -> None:
        self.component = component
        paths = [*component.names, *(name.removesuffix(".weight") for name in component.shapes)]
        self._flat: Mapping[str, str] = MappingProxyType(
            {path.replace(".", "_"): path for path in reversed(paths)}
        )
        present = {path.split(".", 1)[0] for path in paths}
        self.encoders = encoders_in(present)
        family = family_named(component.family)
        own = () if family is None else family.lora.rewrites
        self._rewrites = (*REWRITES, *((re.compile(pattern), new) for pattern, new in own))

    def target(self, name: Name) -> Target | None:
        """Where a module goes; None where this component has no such module."""
        for path in self._paths(name):
            if name.style == "flat":
                found = self._flat.get(path.replace(".", "_"))
                target = self.component.find(found) if found is not None else None
            else:
                target = self._dotted(path)
            if target is not None:
                return target
        return None

    def _paths(self, name: Name) -> Iterator[str]:
        if name.encoder is None:
            yield name.path
            return
        encoder = self._encoder(name.encoder)
        if encoder is None:
            return
        yield f"{encoder}.{name.path}"
        yield f"{encoder}.{encoder_kinds()[encoder].lora.root}{name.path}"

    def _encoder(self, which: str | int) -> str | None:
        if isinstance(which, str):
            return which if which in self.encoders else None
        numbered = (name for name in self.encoders if encoder_kinds()[name].lora.number == which)
        if found := next(numbered, None):
            return found
        return self.encoders[which - 1] if which <= len(self.encoders) else None

    def _dotted(self, path: str) -> Target | None:
        target = self.component.find(path)
        if target is not None:
            return target
        for pattern, new in self._rewrites:
            changed, count = pattern.subn(new, path)
            if count and (target := self.component.find(changed)):
                return target
        return None
