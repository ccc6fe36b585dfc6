"""Text encoders and VAEs of other families: where their widths fit by chance, nothing but words tells.

Narrow files all have a width or two, so that here many fit which real ones would not.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from loraloom.errors import LoraloomError
from loraloom.session import Session
from tests import narrow_models as narrow_files
from tests.families.autoencoders import write_ae, write_flux2_vae, write_qwen_image21, write_wan
from tests.families.bench import Api, Narrow, Shelf, Write, api_node, graph_of, narrow_models
from tests.models.test_tiny_autoencoder import halves, written

ENCODERS: Mapping[str, Write] = {
    "qwen_3_4b": narrow_files.write_qwen3_4b,
    "qwen_3_06b_base": narrow_files.write_qwen3_06b,
    "mistral_3_small_flux2": narrow_files.write_mistral,
    "qwen_2.5_vl_7b": narrow_files.write_qwen25vl,
    "qwen3vl": narrow_files.write_qwen3vl_4b,
    "gemma_2_2b": narrow_files.write_gemma2,
    "t5xxl": narrow_files.write_t5,
    "t5xxl_320": narrow_files.write_wide_t5,
    "clip_l": narrow_files.write_clip_l,
    "clip_g": narrow_files.write_clip_g,
}
"""Qwen3-VL once: nothing but its width tells its sizes, which is the same for both here."""

VAES: tuple[Write, ...] = (write_ae, write_flux2_vae, write_wan, write_qwen_image21)


def _graph(shelf: Shelf, narrow: Narrow, encoders: list[str]) -> Api:
    """One step on a small picture, decoded."""
    case = {"width": 64, "height": 64, "batch": 1, "loras": [], "shift": None, "positive": "a cat"}
    case |= {"negative": "", "seed": 1, "steps": 1, "cfg": 2.0}
    graph = graph_of(shelf, narrow, case)
    names = [shelf.put(f"text_encoders/{name}.safetensors", ENCODERS[name]) for name in encoders]
    numbered = {f"clip_name{number}": name for number, name in enumerate(names, 1)}
    if len(names) == 1:
        graph["clip"] = api_node("CLIPLoader", clip_name=names[0], type=narrow.clip_type)
    elif len(names) == 2:
        graph["clip"] = api_node("DualCLIPLoader", **numbered, type=narrow.clip_type)
    else:
        graph["clip"] = api_node("TripleCLIPLoader", **numbered)
    return graph


def _told(session: Session, graph: Api) -> list[str]:
    """What a person reads: warnings, or the error that ends the run."""
    try:
        return list(session.run(graph).warnings)
    except LoraloomError as error:
        return [str(error)]


@pytest.mark.parametrize("name", narrow_models())
def test_every_encoder_of_another_family_is_told(name: str, session: Session, shelf: Shelf) -> None:
    narrow = narrow_models()[name]
    own = ["qwen3vl" if encoder.startswith("qwen3vl") else encoder for encoder in narrow.encoders]
    assert _told(session, _graph(shelf, narrow, own)) == []
    fitting = set(own)
    if {"t5xxl", "t5xxl_320"} & fitting or narrow.clip_type == "sd3":
        fitting |= {"t5xxl", "t5xxl_320"}
    if name == "flux2_klein":
        fitting |= {"qwen3vl"}
    for place in range(len(own)):
        for other in sorted(ENCODERS.keys() - fitting):
            given = [*own[:place], other, *own[place + 1 :]]
            said = _told(session, _graph(shelf, narrow, given))
            assert any("loaded with the type" in one or "takes" in one for one in said), (given, said)


@pytest.mark.parametrize("name", narrow_models())
def test_every_vae_of_another_kind_is_told(name: str, session: Session, shelf: Shelf) -> None:
    """SD3's and Flux.1's are alike in all that a header says."""
    narrow = narrow_models()[name]
    graph = _graph(shelf, narrow, ["qwen3vl" if e.startswith("qwen3vl") else e for e in narrow.encoders])
    fitting = {narrow.autoencoder, write_ae} if narrow.clip_type == "sd3" else {narrow.autoencoder}
    for write in VAES:
        graph["vae"] = api_node("VAELoader", vae_name=shelf.put(f"vae/{write.__name__}.safetensors", write))
        said = _told(session, graph)
        assert bool(said) == (write not in fitting), (write, said)


@pytest.mark.parametrize("decoder", ["VAEDecode", "VAEDecodeTiled"])
@pytest.mark.parametrize("encoder", ["VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint"])
def test_a_picture_of_another_vae_is_told(encoder: str, decoder: str, session: Session, shelf: Shelf) -> None:
    """As many channels are all that Z-Image's latents and those of Wan 2.1 have in common."""
    graph = _graph(shelf, narrow_models()["z_image"], ["qwen_3_4b"])
    tiles: Api = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    graph["empty"] = api_node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    graph["encode"] = api_node(encoder, pixels=["empty", 0], vae=["vae", 0])
    if encoder == "VAEEncodeTiled":
        graph["encode"]["inputs"] |= tiles
    if encoder == "VAEEncodeForInpaint":
        graph["mask"] = api_node("SolidMask", value=1.0, width=64, height=64)
        graph["encode"]["inputs"] |= {"mask": ["mask", 0], "grow_mask_by": 0}
    graph["sample"]["inputs"]["latent_image"] = ["encode", 0]
    if decoder == "VAEDecodeTiled":
        graph["decode"] = api_node(decoder, samples=["sample", 0], vae=["vae", 0], **tiles)
    assert _told(session, graph) == []
    graph["vae"] = api_node("VAELoader", vae_name=shelf.put("vae/write_wan.safetensors", write_wan))
    words = ("the picture was encoded by a Wan 2.1", "the latent is for a KL autoencoder and this VAE")
    said = _told(session, graph)
    assert len(said) == 2 and all(word in one for word, one in zip(words, said, strict=True)), said


@pytest.mark.parametrize(("tiny", "is_foreign"), [("taesd3", False), ("taef1", True)])
def test_a_tiny_vae_of_another_family_is_told(
    tiny: str, is_foreign: bool, session: Session, shelf: Shelf
) -> None:
    for half, module in zip(("encoder", "decoder"), halves(16), strict=True):
        written(shelf.folder / "vae_approx", tiny, half, module)
    graph = _graph(shelf, narrow_models()["sd35"], ["clip_l", "clip_g"])
    graph["vae"] = api_node("VAELoader", vae_name=tiny)
    said = _told(session, graph)
    assert [f"this VAE is a tiny autoencoder ({tiny})" in one for one in said] == [True] * is_foreign, said


@pytest.mark.parametrize("way", ["ReferenceLatent", "TextEncodeQwenImageEditPlus"])
def test_a_reference_of_another_vae_is_told(way: str, session: Session, shelf: Shelf) -> None:
    """Wan 2.1's latents have as many channels as those of Flux.1's autoencoder."""
    graph = _graph(shelf, narrow_models()["qwen_edit"], ["qwen_2.5_vl_7b"])
    own = graph["vae"]
    foreign = api_node("VAELoader", vae_name=shelf.put("vae/write_ae.safetensors", write_ae))
    graph["empty"] = api_node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    if way == "ReferenceLatent":
        graph["encode"] = api_node("VAEEncode", pixels=["empty", 0], vae=["other", 0])
        graph["shown"] = api_node(way, conditioning=["positive", 0], latent=["encode", 0])
    else:
        graph["shown"] = api_node(way, clip=["clip", 0], prompt="blue", vae=["other", 0], image1=["empty", 0])
    graph["sample"]["inputs"]["positive"] = ["shown", 0]
    said = [_told(session, {**graph, "other": vae}) for vae in (own, foreign)]
    assert said[0] == []
    assert (
        len(said[1]) == 1 and "a picture beside the prompt was encoded by a KL autoencoder" in said[1][0]
    ), said
