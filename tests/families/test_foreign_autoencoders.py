"""A VAE of another kind that has as many channels decodes wrong colours: that is told."""

from __future__ import annotations

import pytest

from loraloom.session import Session
from tests.families.autoencoders import write_ae, write_wan
from tests.families.bench import Shelf, Write, api_node, graph_of, narrow_models, stated


@pytest.mark.parametrize("decoder", ["VAEDecode", "VAEDecodeTiled"])
@pytest.mark.parametrize(("write", "told"), [(write_wan, True), (write_ae, False)])
def test_a_foreign_autoencoder_is_told(
    write: Write, told: bool, decoder: str, session: Session, shelf: Shelf
) -> None:
    narrow = narrow_models()["z_image"]
    graph = graph_of(shelf, narrow, next(iter(stated("z_image")["cases"].values())))
    graph["vae"] = api_node("VAELoader", vae_name=shelf.put(f"vae/{write.__name__}.safetensors", write))
    graph["decode"] = api_node(decoder, samples=["sample", 0], vae=["vae", 0])
    if decoder == "VAEDecodeTiled":
        frames = {"temporal_size": 64, "temporal_overlap": 8}
        graph["decode"]["inputs"] |= {"tile_size": 64, "overlap": 0, **frames}
    warnings = session.run(graph).warnings
    found = [warning for warning in warnings if "the latent is for a KL autoencoder and this VAE" in warning]
    assert bool(found) == told, warnings
