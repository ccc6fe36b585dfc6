"""Our CLIP and T5 against Hugging Face's, narrow, with random weights."""

from __future__ import annotations

import pytest
import torch

from loraloom.errors import ModelFileError
from loraloom.models.encoder import encoder_kind
from loraloom.models.text.clip import ClipConfig, ClipText
from loraloom.models.text.t5 import T5Config, T5Text, relative_buckets

CLIP = ClipConfig(vocabulary=99, positions=20, width=128, layers=3, inner=160, quick_gelu=True, projection=96)
T5 = T5Config(vocabulary=90, width=32, layers=3, heads=4, inner=24, feed_forward=40, buckets=32)


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


def prefixed(module: torch.nn.Module, role: str) -> dict[str, tuple[int, ...]]:
    return {f"{role}.transformer.{name}": tuple(t.shape) for name, t in module.state_dict().items()}


@pytest.mark.parametrize("quick", [True, False])
def test_clip_equals_transformers(quick: bool) -> None:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=CLIP.vocabulary,
            hidden_size=CLIP.width,
            intermediate_size=CLIP.inner,
            projection_dim=96,
            num_hidden_layers=CLIP.layers,
            num_attention_heads=2,
            max_position_embeddings=CLIP.positions,
            hidden_act="quick_gelu" if quick else "gelu",
            bos_token_id=97,
            eos_token_id=98,
        )
    ).eval()
    randomise(theirs)
    role = "clip_l" if quick else "clip_g"
    ours = encoder_kind(role).network(prefixed(theirs, role)).build().eval()
    assert isinstance(ours, ClipText)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.tensor([[97, 5, 6, 7, 98, 98], [97, 8, 98, 98, 98, 98]])
    ends = torch.tensor([4, 2])
    with torch.inference_mode():
        expected = theirs(tokens, output_hidden_states=True)
        last = ours(ours.embed(tokens), ends, None, True)
        skipped = ours(ours.embed(tokens), ends, -2, False)
        normed = ours(ours.embed(tokens), ends, -1, True)
    torch.testing.assert_close(last.hidden, expected.last_hidden_state)
    torch.testing.assert_close(last.projected, expected.text_embeds)
    torch.testing.assert_close(skipped.hidden, expected.hidden_states[-2])
    torch.testing.assert_close(skipped.projected, last.projected)
    torch.testing.assert_close(normed.hidden, last.hidden)


def test_t5_equals_transformers() -> None:
    from transformers.models.t5.configuration_t5 import T5Config as TheirConfig
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    theirs = T5EncoderModel(
        TheirConfig(
            vocab_size=T5.vocabulary,
            d_model=T5.width,
            d_kv=6,
            d_ff=T5.feed_forward,
            num_layers=T5.layers,
            num_heads=T5.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    ).eval()
    randomise(theirs)
    shapes = prefixed(theirs, "t5xxl")
    blueprint = encoder_kind("t5xxl").network(shapes)
    ours = blueprint.build().eval()
    assert isinstance(ours, T5Text)
    ours.load_state_dict({name: theirs.state_dict()[name] for name in ours.state_dict()})
    assert set(ours.state_dict()) <= set(blueprint.placements)
    tokens = torch.randint(90, (2, 300), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(tokens, output_hidden_states=True)
        last = ours(ours.embed(tokens), tokens, None, True)
        skipped = ours(ours.embed(tokens), tokens, -2, False)
    torch.testing.assert_close(last.hidden, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(skipped.hidden, expected.hidden_states[-2], atol=1e-4, rtol=1e-4)
    assert last.pooled is None


def test_far_distances_share_a_bucket() -> None:
    buckets = relative_buckets(torch.tensor([-500, -128, -1, 0, 1, 128, 500]), 32)
    assert buckets.tolist() == [15, 15, 1, 0, 17, 31, 31]


def test_embeddings_may_be_stored_under_either_name() -> None:
    shapes = prefixed(T5Text(T5), "t5xxl")
    renamed = {
        name.replace("transformer.shared", "transformer.encoder.embed_tokens"): s
        for name, s in shapes.items()
    }
    placements = encoder_kind("t5xxl").network(renamed).placements
    assert placements["shared.weight"].native == "t5xxl.transformer.encoder.embed_tokens.weight"


@pytest.mark.parametrize("role", ["clip_l", "t5xxl", "gpt"])
def test_other_weights_are_refused(role: str) -> None:
    with pytest.raises(ModelFileError, match=role):
        encoder_kind(role).network({"clip_l.transformer.text_model.x": (2, 2), "t5xxl.transformer.y": (1,)})
