from __future__ import annotations

import pytest
import torch

from loraloom.custom_nodes.conditioning import conditioning, from_pack, to_pack
from loraloom.sampling.types import Cond


def test_there_and_back() -> None:
    mask, context, pooled = torch.ones(1, 8, 8), torch.zeros(1, 3, 4), torch.ones(1, 2)
    ours = (Cond(context, pooled, {"mask": mask, "strength": 0.5}), Cond(context))
    theirs = to_pack(ours)
    assert isinstance(theirs, list) and theirs[0][0] is context
    assert theirs[0][1] == {"pooled_output": pooled, "mask": mask, "strength": 0.5}
    back = from_pack(theirs)
    assert back == ours
    assert back is not ours


def test_what_encoders_say_beside_comes_back() -> None:
    """Without the places of pictures, Qwen-Image 2.1 would put them behind the prompt."""
    bias = torch.zeros(1, 4, 4)
    slots, numbers, mask = torch.tensor([[2]]), torch.tensor([[5, 1]]), torch.ones(1, 3)
    extras = {"image_slots": slots, "t5xxl_ids": numbers}
    ours = (
        Cond(torch.zeros(1, 3, 4), mask=mask, extras=extras, recipe="qwen_image21"),
        Cond(torch.zeros(1, 3, 4), options={"attention_mask": bias}),
    )
    theirs = to_pack(ours)
    assert isinstance(theirs, list)
    assert theirs[0][1]["image_slots"] is slots and theirs[0][1]["attention_mask"] is mask
    assert theirs[1][1] == {"pooled_output": None, "attention_mask": bias}
    back = from_pack([[tensor, dict(said)] for tensor, said in theirs])
    assert isinstance(back, tuple)
    first, second = back
    assert (first.mask, first.extras, first.recipe, first.options) == (mask, extras, "qwen_image21", {})
    assert second.mask is None and second.options == {"attention_mask": bias}


@pytest.mark.parametrize(
    "value", [[], (), [1, 2], "text", [["a", {}]], [[torch.zeros(1), 1]], {"samples": 1}, None]
)
def test_all_else_is_left_as_it_is(value: object) -> None:
    assert to_pack(value) is value
    assert from_pack(value) is value


def test_an_output_that_is_no_conditioning() -> None:
    assert conditioning([]) == ()
    with pytest.raises(TypeError, match=r"is a dict; expected \[\[tensor, dictionary\]"):
        conditioning({"cond": 1})
