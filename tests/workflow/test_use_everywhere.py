"""Links that Use Everywhere keeps in `extra.ue_links`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from loraloom.errors import WorkflowError
from loraloom.workflow.core_classes import core_schemas
from loraloom.workflow.ui_format import parse_ui
from loraloom.workflow.validate import validate
from tests.workflow.ui_samples import Ui, host, link, node, subgraph, workflow


def everywhere(upstream: Any, slot: Any, downstream: Any, index: Any, kind: str = "VAE") -> Ui:
    return {
        "upstream": upstream, "upstream_slot": slot, "downstream": downstream, "downstream_slot": index,
        "controller": 20, "type": kind,
    }  # fmt: skip


def sample(*listed: Any) -> Ui:
    ui = workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(2, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        node(3, "PrimitiveInt", values=[5, "fixed"], outputs=["INT"]),
        node(6, "VAEDecode", inputs=[("samples", "LATENT", 1), ("vae", "VAE", None)], outputs=["IMAGE"]),
        node(7, "KSampler", values=[1, "fixed", 20, 8, "euler", "normal", 1],
             inputs=[("model", "MODEL", None), ("steps", "INT", None, "steps")]),
        node(20, "Anything Everywhere", inputs=[("anything", "*", 2)]),
        links=[link(1, 2, 0, 6, 0), link(2, 1, 2, 20, 0)],
    )  # fmt: skip
    ui["extra"] = {"ue_links": list(listed)}
    return ui


def api(ui: Ui) -> dict[str, Any]:
    return {key: entry["inputs"] for key, entry in parse_ui(ui).to_api().items()}  # type: ignore[index]


def test_listed_links_count() -> None:
    ui = sample(everywhere("1", 2, 6, 1), everywhere(1, 0, "7", 0, "MODEL"), everywhere(3, 0, 7, 1, "INT"))
    before = deepcopy(ui)
    found = api(ui)
    assert found["6"] == {"samples": ["2", 0], "vae": ["1", 2]}
    assert found["7"]["model"] == ["1", 0]
    assert found["7"]["steps"] == ["3", 0]
    assert "20" not in found
    assert ui == before


def test_a_link_of_its_own_wins() -> None:
    assert api(sample(everywhere("3", 0, 6, 0)))["6"] == {"samples": ["2", 0]}


@pytest.mark.parametrize(
    "listed",
    [None, 3, {}, everywhere(99, 0, 6, 1), everywhere(1, 2, 99, 1), everywhere(1, 2, 6, 9),
     everywhere(1, "2", 6, None), everywhere(1, -1, 6, 1)],
)  # fmt: skip
def test_what_names_nothing_is_no_link(listed: Any) -> None:
    assert "vae" not in api(sample(listed))["6"]


def test_a_reroute_behind_a_listed_link_is_looked_through() -> None:
    ui = sample(everywhere(8, 0, 6, 1))
    ui["nodes"].append(node(8, "Reroute", inputs=[("", "*", 3)], outputs=["VAE"]))
    ui["links"].append(link(3, 1, 2, 8, 0))
    assert api(ui)["6"]["vae"] == ["1", 2]


def test_links_inside_a_subgraph() -> None:
    inner = subgraph(
        "sub",
        node(4, "VAELoader", values=["v"], outputs=["VAE"]),
        node(5, "VAEDecode", inputs=[("samples", "LATENT", None), ("vae", "VAE", None)]),
    )
    inner["extra"] = {"ue_links": [everywhere(4, 0, 5, 1)]}
    found = api(workflow(host(1, "sub"), definitions=[inner]))
    assert found["1:5"]["vae"] == ["1:4", 0]


def test_a_link_to_a_group_node() -> None:
    ui = sample(everywhere(1, 2, 30, 1))
    decode = {"type": "VAEDecode", "inputs": [{"name": "samples"}, {"name": "vae"}], "widgets_values": []}
    ui["nodes"].append(
        node(30, "workflow>D", inputs=[("samples", "LATENT", None), ("vae", "VAE", None)], outputs=["IMAGE"])
    )
    ui["extra"]["groupNodes"] = {"D": {"nodes": [decode], "links": [], "external": []}}
    assert api(ui)["30:0"] == {"vae": ["1", 2]}


def test_a_file_without_the_list_is_told_why() -> None:
    ui = sample()
    del ui["extra"]
    (note,) = parse_ui(ui).notes
    assert "node 20 (Anything Everywhere)" in note and "ue_links" in note
    report = validate(parse_ui(ui), core_schemas(), lambda _: [])
    with pytest.raises(WorkflowError, match="note: node 20 \\(Anything Everywhere\\)"):
        report.raise_if_bad()
