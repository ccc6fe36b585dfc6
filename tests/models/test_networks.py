"""What conditionings become, family by family, and that the networks compute what they should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.diffusion_network import of_width
from loraloom.models.families.flux2.family import FAMILY as FLUX2
from loraloom.models.parts.latent_maps import fit, patches, unpatched
from loraloom.models.parts.references import Place, grid
from loraloom.models.parts.unet_network import BLANK_LATENT, embed_number
from loraloom.models.recipe import wants
from loraloom.models.residency.memory import Memory
from loraloom.sampling.inputs import Inputs, Tokens
from loraloom.sampling.parametrisation import Continuous, Discrete, Flow, FluxFlow, Prediction, Table
from loraloom.sampling.types import Cond, Network, SampleContext, SkipsLayers
from tests import tiny_models as tiny
from tests.models.flux_reference import flux

X = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(1))


def network_of(path: Path) -> Network:
    return Memory("cpu", "fp32").network(open_diffusion_model(path))


def told(y: Tensor, pooled: int) -> list[int]:
    """The numbers that a label embeds, found again from cosines and sines of the unit frequency."""
    parts = y[0, pooled:].reshape(-1, 256)
    numbers = range(0, 4096)
    table = torch.stack([embed_number(number, 256) for number in numbers])
    return [int((table - part).norm(dim=1).argmin()) for part in parts]


def test_sdxl_is_told_the_sizes(tmp_path: Path) -> None:
    network = network_of(tiny.write_sdxl(tmp_path / "m.safetensors"))
    pooled = torch.randn(1, 128)
    plain = network.inputs(Cond(torch.randn(1, 7, 192), pooled), SampleContext(X, X))
    assert torch.equal(plain.vectors["label"][:, :128], pooled)
    assert told(plain.vectors["label"], 128) == [64, 128, 0, 0, 64, 128]
    options = {"height": 1000, "width": 800, "crop_h": 3, "crop_w": 5, "target_height": 512}
    sized = network.inputs(Cond(torch.randn(1, 7, 192), pooled, options), SampleContext(X, X))
    assert told(sized.vectors["label"], 128) == [1000, 800, 3, 5, 512, 800]


def test_prompts_of_another_text_encoder_are_refused(tmp_path: Path) -> None:
    network = network_of(tiny.write_sdxl(tmp_path / "m.safetensors"))
    with pytest.raises(InputError, match=r"64 wide.*reads 192.*clip_l and clip_g.*type sdxl"):
        network.inputs(Cond(torch.randn(1, 7, 64), torch.randn(1, 128)), SampleContext(X, X))


def test_the_encoder_of_a_models_size_is_named() -> None:
    klein, dev = FLUX2.prompt, FLUX2.prompt_where["guidance_in.in_layer.weight"]
    said = [wants(of_width(recipe, width)) for recipe, width in ((klein, 7680), (klein, 12288), (dev, 15360))]
    assert said == ["qwen3 (4b)", "qwen3 (8b)", "mistral3"]
    assert wants(of_width(klein, 1)) == "qwen3 (4b/8b)"


def test_families_that_look_at_no_references_say_so(tmp_path: Path) -> None:
    memory, said = Memory("cpu", "fp32"), list[str]()
    memory.tell = said.append
    network = memory.network(open_diffusion_model(tiny.write_sd15(tmp_path / "m.safetensors")))
    network.inputs(Cond(torch.randn(1, 7, 64)), SampleContext(X, X))
    assert not said
    network.inputs(Cond(torch.randn(1, 7, 64), options={"reference_latents": (X,)}), SampleContext(X, X))
    assert said == ["Stable Diffusion 1.5 looks at none of the reference pictures of this conditioning"]


@pytest.mark.parametrize(("role", "score"), [("positive", 6), ("negative", 2.5)])
def test_the_refiner_is_told_a_score(tmp_path: Path, role: str, score: float) -> None:
    network = network_of(tiny.write_refiner(tmp_path / "m.safetensors"))
    inputs = network.inputs(Cond(torch.randn(1, 7, 128), torch.zeros(1, 128)), SampleContext(X, X, role=role))
    assert told(inputs.vectors["label"], 128)[:4] == [64, 128, 0, 0]
    torch.testing.assert_close(inputs.vectors["label"][0, -256:], embed_number(score, 256))


def inpainting(tmp_path: Path) -> Network:
    shapes = tiny.unet_shapes(in_channels=9)
    return network_of(tiny.write(tmp_path / "inpaint.safetensors", shapes))


def test_inpainting_sees_mask_and_picture(tmp_path: Path) -> None:
    network = inpainting(tmp_path)
    picture, mask = torch.randn(1, 4, 8, 16), torch.zeros(1, 1, 64, 128)
    mask[..., 64:] = 1
    cond = Cond(torch.randn(1, 7, 64), options={"concat_latent_image": picture, "concat_mask": mask})
    concat = network.inputs(cond, SampleContext(X, X)).maps["inpainting"]
    assert concat.shape == (1, 5, 8, 16)
    assert torch.equal(concat[:, :1], (torch.arange(16) >= 8).float().expand(1, 1, 8, 16))
    torch.testing.assert_close(concat[:, 1:], picture * 0.18215)
    output = network(
        X, torch.tensor([10.0]), Inputs({"context": Tokens(cond.context)}, maps={"inpainting": concat})
    )
    assert output.shape == X.shape


def test_inpainting_without_a_mask_paints_everything(tmp_path: Path) -> None:
    concat = inpainting(tmp_path).inputs(Cond(torch.randn(1, 7, 64)), SampleContext(X, X)).maps["inpainting"]
    assert concat[:, 0].eq(1).all()
    assert concat[0, 1:, 0, 0].tolist() == pytest.approx(BLANK_LATENT)


def test_inpainting_takes_the_runs_own_mask(tmp_path: Path) -> None:
    mask = torch.rand(1, 1, 8, 16).round()
    concat = (
        inpainting(tmp_path).inputs(Cond(torch.randn(1, 7, 64)), SampleContext(X, X, mask)).maps["inpainting"]
    )
    assert torch.equal(concat, torch.cat([mask, X], dim=1))


def test_fit_cuts_the_centre_to_the_proportions() -> None:
    wide = torch.arange(24.0).expand(1, 1, 4, 24)
    assert torch.equal(fit(wide, torch.empty(3, 1, 4, 12)), wide[..., 6:18].expand(3, 1, 4, 12))


def test_sizes_come_as_cosines_then_sines() -> None:
    embedded = embed_number(5, 4)
    expected = [math.cos(5), math.cos(0.05), math.sin(5), math.sin(0.05)]
    assert embedded.tolist() == pytest.approx(expected, rel=1e-5)


FLUX_X = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(3))


def flux_inputs(network: Network, options: dict[str, object] | None = None) -> Inputs:
    generator = torch.Generator().manual_seed(4)
    context, pooled = (torch.randn(shape, generator=generator) for shape in ((1, 5, 64), (1, 64)))
    inputs = network.inputs(Cond(context, pooled, options or {}), SampleContext(FLUX_X, FLUX_X))
    return inputs.mapped(lambda value: value.expand(2, *value.shape[1:]))


@pytest.mark.parametrize("guidance", [True, False])
def test_flux_computes_what_diffusers_does(tmp_path: Path, guidance: bool) -> None:
    path = tiny.write_flux(tmp_path / "flux.safetensors", guidance=guidance)
    memory = Memory("cpu", "fp32")
    network = memory.network(open_diffusion_model(path))
    inputs = flux_inputs(network, {"guidance": 2.0})
    times = torch.tensor([0.25, 0.75])
    found = network(FLUX_X, times, inputs)
    tokens, rows, columns = patches(FLUX_X)
    (expected,) = memory.resident_module(open_diffusion_model(path))(
        hidden_states=tokens,
        encoder_hidden_states=inputs.tokens["context"].values,
        pooled_projections=inputs.vectors["pooled"],
        timestep=times,
        img_ids=grid(rows, columns, Place()),
        txt_ids=torch.zeros(5, 3),
        guidance=torch.full((2,), 2.0) if guidance else None,
        return_dict=False,
    )
    torch.testing.assert_close(found, unpatched(expected, rows, columns))
    assert ("guidance" in inputs.vectors) is guidance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_flux_computes_what_its_description_says(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tiny.write_flux(tmp_path / "flux.safetensors", double=2, single=2, dtype=dtype)
    model = open_diffusion_model(path)
    network = Memory("cpu", "fp32").network(model)
    inputs = flux_inputs(network, {"guidance": 2.0})
    times, guidance = torch.tensor([0.25, 0.75]), torch.full((2,), 2.0)
    found = network(FLUX_X, times, inputs)

    def weights(name: str) -> Tensor:
        return model.weights.read(name, torch.float32)

    expected = flux(
        weights, (2, 2), FLUX_X, times, guidance, inputs.vectors["pooled"], inputs.tokens["context"].values
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_flux_attends_to_styles_as_strongly_as_they_say(tmp_path: Path) -> None:
    """Of 5 tokens the last two are a style's, to which the others attend by a tenth."""
    model = open_diffusion_model(
        tiny.write_flux(tmp_path / "flux.safetensors", double=2, single=2, dtype=torch.float32)
    )
    said = torch.zeros(1, 6, 6)
    said[:, [0, 1, 2, 5], 3:5] = math.log(0.1)
    network = Memory("cpu", "fp32").network(model)
    inputs = flux_inputs(network, {"attention_mask": said})
    assert not inputs.joins(flux_inputs(network))
    times, guidance = torch.tensor([0.25, 0.75]), torch.full((2,), 3.5)
    bias = torch.zeros(5 + 12, 5 + 12)
    bias[:, 3:5] = math.log(0.1)
    bias[3:5] = 0
    expected = flux(
        lambda name: model.weights.read(name, torch.float32),
        (2, 2),
        FLUX_X,
        times,
        guidance,
        inputs.vectors["pooled"],
        inputs.tokens["context"].values,
        bias,
    )
    torch.testing.assert_close(network(FLUX_X, times, inputs), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="said how 6 tokens .* has 5 by now"):
        flux_inputs(network, {"attention_mask": torch.zeros(1, 7, 7)})


def test_flux_guidance_and_pooled_have_defaults(tmp_path: Path) -> None:
    network = network_of(tiny.write_flux(tmp_path / "flux.safetensors"))
    inputs = network.inputs(Cond(torch.zeros(1, 5, 64)), SampleContext(FLUX_X, FLUX_X))
    assert inputs.vectors["guidance"].tolist() == [3.5]
    assert torch.equal(inputs.vectors["pooled"], torch.zeros(1, 64))


def test_odd_sizes_are_patched_and_cut_back() -> None:
    x = torch.randn(1, 16, 7, 5)
    tokens, rows, columns = patches(x)
    assert (tokens.shape, rows, columns) == ((1, 12, 64), 4, 3)
    assert torch.equal(unpatched(tokens, rows, columns)[..., :7, :5], x)


def test_flux_can_leave_out_blocks(tmp_path: Path) -> None:
    network = network_of(tiny.write_flux(tmp_path / "flux.safetensors"))
    assert isinstance(network, SkipsLayers)
    inputs, times = flux_inputs(network), torch.tensor([0.5, 0.5])
    whole = network(FLUX_X, times, inputs)
    assert torch.equal(network.skipping(())(FLUX_X, times, inputs), whole)
    assert not torch.allclose(network.skipping((("single", 1),))(FLUX_X, times, inputs), whole)


def test_fill_models_see_picture_and_mask(tmp_path: Path) -> None:
    shapes = tiny.flux_shapes() | {"img_in.weight": (128, 384)}
    network = network_of(tiny.write(tmp_path / "fill.safetensors", shapes, torch.bfloat16))
    mask = torch.zeros(1, 48, 64)
    mask[:, 8:16, :8] = 1
    inputs = flux_inputs(network, {"concat_latent_image": FLUX_X[:1], "concat_mask": mask})
    assert inputs.maps["picture"].shape == (2, 80, 6, 8)
    assert torch.equal(
        inputs.maps["picture"][:, :16], network.process_latent_in(FLUX_X[:1].expand(2, -1, -1, -1))
    )
    assert inputs.maps["picture"][0, 16:].sum(dim=0).nonzero().tolist() == [[1, 0]]
    assert network(FLUX_X, torch.tensor([0.5, 0.5]), inputs).shape == FLUX_X.shape


def test_latents_are_scaled_both_ways(tmp_path: Path) -> None:
    network = network_of(tiny.write_flux(tmp_path / "flux.safetensors"))
    scaled = network.process_latent_in(FLUX_X)
    torch.testing.assert_close(scaled, (FLUX_X - 0.1159) * 0.3611)
    torch.testing.assert_close(network.process_latent_out(scaled), FLUX_X)


def test_predictions_follow_the_marks_of_the_file(tmp_path: Path) -> None:
    def of(path: Path) -> object:
        return network_of(path).parametrisation

    unet = tiny.unet_shapes()
    assert of(tiny.write_sd15(tmp_path / "a")) == Discrete("eps")
    assert of(tiny.write_sd20(tmp_path / "b", v=True)) == Discrete("v")
    marks = unet | {"v_pred": (0,), "ztsnr": (0,)}
    assert of(tiny.write(tmp_path / "c", marks)) == Discrete("v", Table(zero_snr=True))
    stated = {"modelspec.prediction_type": "v"}
    assert of(tiny.write(tmp_path / "d", unet, metadata=stated)) == Discrete("v")
    ranged = unet | {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}
    assert isinstance(of(tiny.write(tmp_path / "e", ranged)), Continuous)
    assert of(tiny.write_flux(tmp_path / "f")) == FluxFlow()
    assert of(tiny.write_flux(tmp_path / "g", guidance=False)) == Flow(shift=1.0, multiplier=1.0)


def test_sd2_files_without_marks_are_told_apart_by_a_norm(tmp_path: Path) -> None:
    shapes = tiny.unet_shapes(width=64, levels=(1, 1, 1, 1), depths=(1, 1, 1, 0), linear=True, resnets=2)
    name = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    assert name in shapes
    cases: tuple[tuple[float, Prediction], ...] = ((0.02, "eps"), (0.2, "v"))
    for spread, prediction in cases:
        path = tiny.write(tmp_path / f"{prediction}.safetensors", shapes, change={name: spread / 0.02})
        assert network_of(path).parametrisation == Discrete(prediction)


def test_a_whole_checkpoint_runs(tmp_path: Path) -> None:
    model, _, vae = open_checkpoint(tiny.write_sdxl(tmp_path / "m.safetensors"))
    assert vae is not None
    memory = Memory("cpu", "fp32")
    network = memory.network(model)
    inputs = network.inputs(Cond(torch.randn(1, 7, 192), torch.randn(1, 128)), SampleContext(X, X))
    latent = network.process_latent_out(network(X, torch.tensor([500.0]), inputs).detach())
    assert memory.autoencoder(vae).decode(latent).shape == (1, 64, 128, 3)
    for size in ((1, 1), (7, 64), (64, 7)):
        with pytest.raises(InputError, match=f"{size[1]}×{size[0]} pixels is smaller than one cell"):
            memory.autoencoder(vae).encode(torch.zeros(1, *size, 3))


def test_flux_models_with_a_picture_beside_their_latent_refuse_references(tmp_path: Path) -> None:
    shapes = tiny.flux_shapes() | {"img_in.weight": (128, 384)}
    network = network_of(tiny.write(tmp_path / "fill.safetensors", shapes, torch.bfloat16))
    with pytest.raises(InputError, match="Fill, Canny, Depth"):
        flux_inputs(network, {"reference_latents": (FLUX_X[:1],)})


def test_flux_refuses_references_at_time_zero(tmp_path: Path) -> None:
    network = network_of(tiny.write_flux(tmp_path / "flux.safetensors"))
    told: dict[str, object] = {
        "reference_latents": (FLUX_X[:1],),
        "reference_latents_method": "index_timestep_zero",
    }
    with pytest.raises(InputError, match=r"'index_timestep_zero'; it knows offset, index, uxo"):
        flux_inputs(network, told)
