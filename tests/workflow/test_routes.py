"""What links pass through: nodes that only the editor knows, whatever their mode."""

from __future__ import annotations

from typing import Any

import pytest

from loraloom.workflow.ui_format import parse_ui
from tests.workflow.ui_samples import Ui, link, node, workflow

ALWAYS, NEVER, BYPASS = 0, 2, 4
MODES = (ALWAYS, NEVER, BYPASS)


def api(ui: Ui) -> dict[str, Any]:
    return {key: entry["inputs"] for key, entry in parse_ui(ui).to_api().items()}  # type: ignore[index]


def around(*between: Ui, links: list[Any]) -> Ui:
    """A latent (1) and a decoder (9) with nodes between them; link 1 leaves, link 2 arrives."""
    return workflow(
        node(1, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        node(9, "VAEDecode", inputs=[("samples", "LATENT", 2)]),
        *between,
        links=links,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["Reroute", "Reroute (rgthree)"])
def test_a_reroute_passes_its_link_on(kind: str, mode: int) -> None:
    between = node(5, kind, inputs=[("", "*", 1)], outputs=["*"], mode=mode)
    found = api(around(between, links=[link(1, 1, 0, 5, 0), link(2, 5, 0, 9, 0)]))
    assert found == {"1": {"width": 64, "height": 64, "batch_size": 1}, "9": {"samples": ["1", 0]}}


@pytest.mark.parametrize("getter", MODES)
@pytest.mark.parametrize("setter", MODES)
@pytest.mark.parametrize("pack", ["{}Node", "easy {}Node"])
def test_set_and_get_pass_their_link_on(pack: str, setter: int, getter: int) -> None:
    write, read = (pack.format(word if pack[0] == "e" else word.title()) for word in ("set", "get"))
    between = (
        node(5, write, values=["L"], inputs=[("LATENT", "LATENT", 1)], outputs=["*"], mode=setter),
        node(6, read, values=["L"], outputs=["LATENT"], mode=getter),
    )
    found = api(around(*between, links=[link(1, 1, 0, 5, 0), link(2, 6, 0, 9, 0)]))
    assert found == {"1": {"width": 64, "height": 64, "batch_size": 1}, "9": {"samples": ["1", 0]}}


def test_getters_of_one_pack_read_only_its_setters() -> None:
    between = (
        node(5, "SetNode", values=["L"], inputs=[("LATENT", "LATENT", 1)], outputs=["*"]),
        node(6, "easy getNode", values=["L"], outputs=["LATENT"]),
    )
    assert api(around(*between, links=[link(1, 1, 0, 5, 0), link(2, 6, 0, 9, 0)]))["9"] == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["PrimitiveNode", "Seed Everywhere"])
def test_a_primitive_gives_its_value(kind: str, mode: int) -> None:
    ui = workflow(
        node(1, kind, values=[3, "fixed"], outputs=["INT"], mode=mode),
        node(2, "EmptyLatentImage", values=[64, 64, 1], inputs=[("batch_size", "INT", 1, "batch_size")]),
        links=[link(1, 1, 0, 2, 0)],
    )
    assert api(ui) == {"2": {"width": 64, "height": 64, "batch_size": 3}}


@pytest.mark.parametrize("mode", [NEVER, BYPASS])
def test_a_muted_primitive_behind_a_muted_reroute(mode: int) -> None:
    ui = workflow(
        node(1, "PrimitiveNode", values=[3, "fixed"], outputs=["INT"], mode=mode),
        node(3, "Reroute", inputs=[("", "*", 1)], outputs=["INT"], mode=mode),
        node(2, "EmptyLatentImage", values=[64, 64, 1], inputs=[("batch_size", "INT", 2, "batch_size")]),
        links=[link(1, 1, 0, 3, 0), link(2, 3, 0, 2, 0)],
    )
    assert api(ui)["2"]["batch_size"] == 3


@pytest.mark.parametrize(
    "kind",
    [
        "Fast Muter (rgthree)", "Fast Groups Muter (rgthree)", "Fast Bypasser (rgthree)",
        "Fast Groups Bypasser (rgthree)", "Mute / Bypass Repeater (rgthree)", "Anything Everywhere",
        "Prompts Everywhere", "Note", "MarkdownNote", "Label (rgthree)",
    ],
)  # fmt: skip
def test_what_only_the_editor_knows_reaches_no_server(kind: str) -> None:
    between = node(5, kind, inputs=[("x", "*", 1)], outputs=["OPT_CONNECTION"])
    assert set(api(around(between, links=[link(1, 1, 0, 5, 0)]))) == {"1", "9"}
