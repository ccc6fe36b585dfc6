"""Tensor names of LoRA files: the module that a tensor belongs to, and the tensor's role in its algebra.

Every trainer writes `<module><ending>`; the endings differ, the roles do not. The algebras say their endings,
whatever the module names look like.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraloom.lora.algebras import registry

BUNDLE = "bundle_emb."
"""Prefix of text-encoder vectors (textual inversion) that travel inside a LoRA file."""


def split_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a tensor name; None where no ending is known.

    PEFT's adapter names (as in "….default.weight") are dropped; what endings cannot tell, such as kohya's
    numbered parts of a fused layer, the algebras take apart themselves.
    """
    known = registry()
    for split in known.splits:
        if (found := split(key)) is not None:
            return found
    if found := known.adapter.search(key):
        key = f"{key[: found.start()]}.{found[1]}{found[3] or ''}"
    for ending, role in known.endings:
        if key.endswith(ending) and len(key) > len(ending):
            return key.removesuffix(ending), role
    return None


def settled(module: str, roles: Mapping[str, str]) -> tuple[str, dict[str, str], list[str]]:
    """A module whose tensors are all known: its name and its tensors by role, as its algebras mean them, and
    the tensors that are nobody's where others are missing."""
    known = registry()
    strays = {role for role, other in known.only_beside.items() if role in roles and other not in roles}
    kept = {role: key for role, key in roles.items() if role not in strays}
    if len(kept) == 1:
        ((role, key),) = kept.items()
        meanings = (algebra.alone(module, role) for algebra in known.algebras.values())
        module, role = next((meant for meant in meanings if meant is not None), (module, role))
        kept = {role: key}
    return module, kept, [roles[role] for role in strays]
