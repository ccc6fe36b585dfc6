"""Writes what is derived from the node library: the index of classes and the docs' table.

usage: .venv/bin/python scripts/index_nodes.py
"""

from __future__ import annotations

from pathlib import Path

from loraloom.engine.node import collect
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.implemented import index
from loraloom.workflow.schema import Input, NodeSchema

ROOT = Path(__file__).parent.parent


def main() -> None:
    schemas = {name: found.schema for name, found in collect("loraloom.nodes").items()}
    data = ROOT / "src/loraloom/workflow/data/implemented.json"
    data.write_text(index(schemas), "utf-8")
    (ROOT / "docs/nodes.md").write_text(docs(schemas), "utf-8")


def docs(schemas: dict[str, NodeSchema]) -> str:
    """The page docs/nodes.md."""
    others = sorted(set(core_schemas()) - set(schemas))
    lines = [
        "# Nodes",
        "",
        f"{len(schemas)} node classes run in Loraloom, with ComfyUI's names, inputs and outputs.",
        f"{len(others)} more of ComfyUI's classes are known to `convert` and `validate` and do not run yet;",
        "they are listed at the end. This page is written by `scripts/index_nodes.py`.",
    ]
    for category in sorted({s.category for s in schemas.values()}):
        lines += ["", f"## {category}", "", "| class | inputs | outputs | what it does |"]
        lines.append("|---|---|---|---|")
        lines += [_row(schemas[name]) for name in sorted(schemas) if schemas[name].category == category]
    lines += ["", "## Known, not run yet", "", ", ".join(f"`{name}`" for name in others), ""]
    return "\n".join(lines)


def _row(schema: NodeSchema) -> str:
    inputs = ", ".join(_input(entry) for entry in schema.inputs)
    outputs = ", ".join(o.name if o.name == o.type else f"{o.name} ({o.type})" for o in schema.outputs)
    about = schema.description.replace("|", "\\|")
    return f"| `{schema.name}` | {inputs or '–'} | {outputs or '–'} | {about} |"


def _input(entry: Input) -> str:
    kind = "file" if entry.folders else entry.type
    text = f"{entry.name}: {kind}"
    if entry.default is not None and entry.default != "":
        text += f" = {str(entry.default).replace('|', '')}"
    return text if entry.required else f"[{text}]"


if __name__ == "__main__":
    main()
