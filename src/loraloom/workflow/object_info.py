"""Schemas in the form of ComfyUI's `/object_info`, both ways.

Two generations of node classes are spelled differently there: the first gives the choices of a COMBO as a
list in place of its type and leaves out flags that are false; the second gives `["COMBO", {"options": …}]`
and always says `deprecated`, `experimental` and `api_node`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from loraloom.errors import WorkflowError
from loraloom.workflow.graph import JSON
from loraloom.workflow.schema import FileLister, Input, NodeSchema, Output

# Options that only the second generation's COMBO carries.
_SECOND_GENERATION = ("multiselect", "remote", "options")


def object_info(schema: NodeSchema, files: FileLister) -> dict[str, JSON]:
    """The `/object_info` entry of a class; `files` lists the model folders that its choices name."""
    required: dict[str, JSON] = {i.name: input_spec(i, files) for i in schema.inputs if i.required}
    optional: dict[str, JSON] = {i.name: input_spec(i, files) for i in schema.inputs if not i.required}
    second = schema.api_node is not None
    hidden: dict[str, JSON] = {name: [kind] if second else kind for name, kind in schema.hidden.items()}
    inputs: dict[str, JSON] = {"required": required}
    if optional:
        inputs["optional"] = optional
    if hidden:
        inputs["hidden"] = hidden
    outputs = [output for output in schema.outputs if not output.later]
    entry: dict[str, JSON] = {
        "input": inputs,
        "input_order": {section: list(cast("dict[str, JSON]", names)) for section, names in inputs.items()},
        "output": [o.type for o in outputs],
        "output_is_list": [o.is_list for o in outputs],
        "output_name": [o.name for o in outputs],
        "name": schema.name,
        "display_name": schema.display_name or (None if second else schema.name),
        "description": schema.description,
        "python_module": schema.python_module,
        "category": schema.category,
        "output_node": schema.output_node,
    }
    flags = {"deprecated": schema.deprecated, "experimental": schema.experimental}
    entry.update({flag: value for flag, value in flags.items() if value or second})
    if second:
        entry["api_node"] = schema.api_node
    return entry


def input_spec(entry: Input, files: FileLister) -> list[JSON]:
    """One input as `/object_info` spells it: its type (or choices) and its options."""
    options = dict(entry.options)
    if entry.type != "COMBO":
        return [entry.type, options]
    if not any(key in options for key in _SECOND_GENERATION):
        return [entry.all_choices(files), options]
    if "remote" not in options:
        options["options"] = entry.all_choices(files)
    return ["COMBO", options]


def from_object_info(entry: Mapping[str, JSON]) -> NodeSchema:
    """The schema of an `/object_info` entry, as another server gives it.

    Choices are kept as they are: which of them are files of that machine is not said there. Raises
    WorkflowError if it is no such entry.
    """
    try:
        return _from_entry(cast("Mapping[str, Any]", entry))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        name = entry.get("name", "?")
        raise WorkflowError(
            f"the /object_info entry of class {name!r} is not in ComfyUI's form ({error}); expected the keys "
            "input, output, output_name, output_is_list and name"
        ) from error


def _from_entry(entry: Mapping[str, Any]) -> NodeSchema:
    sections = entry["input"]
    required = [_input(name, spec, True) for name, spec in sections.get("required", {}).items()]
    optional = [_input(name, spec, False) for name, spec in sections.get("optional", {}).items()]
    hidden = {
        name: str(cast("list[Any]", kind)[0] if isinstance(kind, list) else kind)
        for name, kind in sections.get("hidden", {}).items()
    }
    outputs = zip(entry["output_name"], entry["output"], entry["output_is_list"], strict=True)
    return NodeSchema(
        name=entry["name"],
        inputs=(*required, *optional),
        outputs=tuple(Output(name, kind, is_list) for name, kind, is_list in outputs),
        display_name=entry.get("display_name") or "",
        category=entry.get("category", ""),
        description=entry.get("description", ""),
        output_node=bool(entry.get("output_node", False)),
        hidden=hidden,
        deprecated=bool(entry.get("deprecated", False)),
        experimental=bool(entry.get("experimental", False)),
        api_node=entry.get("api_node"),
        python_module=entry.get("python_module", "nodes"),
    )


def _input(name: str, spec: list[Any], required: bool) -> Input:
    kind = spec[0]
    options: dict[str, Any] = dict(spec[1]) if len(spec) > 1 else {}
    choices: list[JSON] = []
    if isinstance(kind, list):
        choices, kind = cast("list[JSON]", kind), "COMBO"
    elif kind == "COMBO":
        choices = options.pop("options", [])
        if not any(key in options for key in _SECOND_GENERATION):
            options["options"] = []
    return Input(
        name=name,
        type=kind,
        choices=tuple(choices),
        options=options,
        required=required,
        lazy=bool(options.get("lazy", False)),
    )
