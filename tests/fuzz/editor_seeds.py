"""Editor workflows that hold, between them, everything the editor knows and the API format does not."""

from __future__ import annotations

from typing import Any

from tests.workflow.ui_samples import Ui, host, link, node, subgraph, workflow

_SAMPLER = [1, "fixed", 20, 8, "euler", "normal", 1]


def _plain() -> Ui:
    """Reroutes, Set and Get, a primitive, bypassed and muted nodes, Use Everywhere."""
    ui = workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(2, "LoraLoader", values=["b", 1, 1], inputs=[("model", "MODEL", 1), ("clip", "CLIP", 2)],
             outputs=["MODEL", "CLIP"], mode=4),
        node(3, "SetNode", values=["m"], inputs=[("MODEL", "MODEL", 3)], outputs=["*"]),
        node(4, "GetNode", values=["m"], outputs=["MODEL"]),
        node(5, "Reroute", inputs=[("", "*", 4)], outputs=["CLIP"]),
        node(6, "PrimitiveNode", values=[7, "increment"], outputs=["INT"]),
        node(7, "CLIPTextEncode", values=["a {b|c} %date:yyyy%"], inputs=[("clip", "CLIP", 5)],
             outputs=["CONDITIONING"]),
        node(8, "KSampler", values=_SAMPLER, outputs=["LATENT"],
             inputs=[("model", "MODEL", 6), ("positive", "CONDITIONING", 7), ("seed", "INT", 8, "seed")]),
        node(9, "VAEDecode", inputs=[("samples", "LATENT", 9), ("vae", "VAE", None)], outputs=["IMAGE"]),
        node(10, "SaveImage", values=["x"], inputs=[("images", "IMAGE", 10)]),
        node(11, "PreviewImage", inputs=[("images", "IMAGE", 10)], mode=2),
        node(12, "Anything Everywhere", inputs=[("anything", "*", 11)]),
        node(13, "Note", values=["text"]),
        links=[link(1, 1, 0, 2, 0), link(2, 1, 1, 2, 1), link(3, 2, 0, 3, 0), link(4, 2, 1, 5, 0),
               link(5, 5, 0, 7, 0), link(6, 4, 0, 8, 0), link(7, 7, 0, 8, 1), link(8, 6, 0, 8, 2),
               link(9, 8, 0, 9, 0), link(10, 9, 0, 10, 0), link(11, 1, 2, 12, 0)],
    )  # fmt: skip
    listed = {"downstream": 9, "downstream_slot": 1, "upstream": "1", "upstream_slot": 2, "type": "VAE"}
    ui["extra"] = {"ue_links": [{**listed, "controller": 12}]}
    return ui


def _group() -> Ui:
    """Group nodes with inner links, hidden widgets, a primitive and outer sockets."""
    turned = [{"name": "seed", "type": "INT", "widget": {"name": "seed"}}]
    sockets = [{"name": n, "type": t} for n, t in (("model", "MODEL"), ("latent_image", "LATENT"))]
    inner: list[Ui] = [
        {"index": 0, "type": "EmptyLatentImage", "widgets_values": [64, 64, 1],
         "outputs": [{"name": "LATENT"}]},
        {"index": 1, "type": "PrimitiveNode", "widgets_values": [7, "fixed"], "outputs": [{"name": "INT"}]},
        {"index": 2, "type": "KSampler", "widgets_values": _SAMPLER, "inputs": [*sockets, *turned],
         "outputs": [{"name": "LATENT"}]},
        {"index": 3, "type": "Reroute", "inputs": [{"name": "", "type": "*"}], "outputs": [{"name": ""}]},
    ]  # fmt: skip
    links: list[Any] = [[0, 0, 2, 1, 4, "LATENT"], [1, 0, 2, 2, 5, "INT"], [2, 0, 3, 0, 6, "LATENT"]]
    group = {
        "nodes": inner,
        "links": [*links, [None, 0, 2, 0, 1, "MODEL"]],
        "external": [[3, 0, "LATENT"]],
        "config": {"0": {"input": {"width": {"visible": False, "name": "w"}}}, "3": {"output": {"0": {}}}},
    }
    ui = workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        node(5, "workflow>Draw", values=[64, 64, 1, 7, "fixed", *_SAMPLER[2:]],
             inputs=[("model", "MODEL", 1)], outputs=["LATENT"]),
        node(6, "VAEDecode", inputs=[("samples", "LATENT", 3), ("vae", "VAE", 2)], outputs=["IMAGE"]),
        links=[link(1, 1, 0, 5, 0), link(2, 1, 2, 6, 1), link(3, 5, 0, 6, 0)],
    )  # fmt: skip
    ui["extra"] = {"groupNodes": {"Draw": group}}
    return ui


def _nested() -> Ui:
    """A subgraph in a subgraph with promoted widgets, one of them linked from outside."""
    inner = subgraph(
        "inner",
        node(1, "CLIPTextEncode", values=["a"], outputs=["CONDITIONING"],
             inputs=[("clip", "CLIP", 1), ("text", "STRING", 2, "text")]),
        inputs=[("clip", "CLIP"), ("text", "STRING")],
        outputs=[("CONDITIONING", "CONDITIONING")],
        links=[link(1, -10, 0, 1, 0, "CLIP"), link(2, -10, 1, 1, 1, "STRING"), link(3, 1, 0, -20, 0)],
    )  # fmt: skip
    outer = subgraph(
        "outer",
        host(2, "inner", values=["b"], inputs=[("clip", "CLIP", 1), ("text", "STRING", None, "text")],
             outputs=["CONDITIONING"], properties={"proxyWidgets": [["1", "text"]]}),
        node(3, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        inputs=[("clip", "CLIP")],
        outputs=[("CONDITIONING", "CONDITIONING"), ("LATENT", "LATENT")],
        links=[link(1, -10, 0, 2, 0, "CLIP"), link(2, 2, 0, -20, 0), link(3, 3, 0, -20, 1)],
    )  # fmt: skip
    proxies = {"proxyWidgets": [["3", "width"], ["2", "text"], ["-1", "height"]]}
    return workflow(
        node(1, "CheckpointLoaderSimple", values=["a"], outputs=["MODEL", "CLIP", "VAE"]),
        host(4, "outer", values=[96, "c"], inputs=[("clip", "CLIP", 1)], properties=proxies,
             outputs=["CONDITIONING", "LATENT"]),
        host(5, "outer", inputs=[("clip", "CLIP", 2)], outputs=["CONDITIONING", "LATENT"], mode=4),
        node(6, "KSampler", values=_SAMPLER, outputs=["LATENT"],
             inputs=[("model", "MODEL", 3), ("positive", "CONDITIONING", 4), ("latent_image", "LATENT", 5)]),
        links=[link(1, 1, 1, 4, 0), link(2, 1, 1, 5, 0), link(3, 1, 0, 6, 0), link(4, 4, 0, 6, 1),
               link(5, 4, 1, 6, 2)],
        definitions=[inner, outer],
    )  # fmt: skip


EDITOR = (_plain(), _group(), _nested())
