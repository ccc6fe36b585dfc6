"""The pages that scripts write from the program."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from loraloom.cli.main import COMMANDS
from tests.docs.blocks import DOCS, ROOT


def made_by(script: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))


@pytest.mark.parametrize("name", ["commands", "http", "python"])
def test_a_reference_page_is_up_to_date(name: str) -> None:
    page = made_by(f"index_{name}")["page"]()
    written = (DOCS / "reference" / f"{name}.md").read_text("utf-8")
    assert written == page, f"run scripts/index_{name}.py"


def test_every_command_is_on_the_page() -> None:
    page = made_by("index_commands")["page"]()
    assert all(f"\n## loraloom {name}" in page for name in COMMANDS)


def test_every_operation_says_what_it_does() -> None:
    schema = made_by("index_http")["schema"]()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), f"{method} {path} has no docstring"


def test_what_the_schema_refers_to_is_in_it() -> None:
    """A reference to `#/$defs/…` leads nowhere in an OpenAPI document."""
    schema = made_by("index_http")["schema"]()
    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert set(_references(schema)) <= known


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return [*own, *(found for inner in value.values() for found in _references(inner))]
    return [found for inner in value for found in _references(inner)] if isinstance(value, list) else []
