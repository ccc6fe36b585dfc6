"""ComfyUI's own text-to-image templates, run from end to end on narrow models in the real formats.

The templates are read from the installed package `comfyui-workflow-templates`; sizes and steps are divided so
that each runs in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.session import Session
from loraloom.workflow.graph import Graph, Value
from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.sources import read_source
from tests.demo_models import demo_lora
from tests.tiny_models import (
    write_clip_l,
    write_flux,
    write_flux_checkpoint,
    write_refiner,
    write_sd15,
    write_sd20,
    write_sdxl,
    write_t5,
    write_vae,
)

PACKAGE = find_spec("comfyui_workflow_templates")
FOLDER = Path((PACKAGE.submodule_search_locations or [""])[0]) / "templates" if PACKAGE else Path()
pytestmark = pytest.mark.skipif(
    not (FOLDER / "default.json").is_file(),
    reason="the templates of comfyui-workflow-templates 0.1.95 are not installed",
)


def _lora(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(demo_lora(), path)


Writer = Callable[[Path], object]
FILES: dict[str, Writer] = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": write_sd15,
    "checkpoints/dreamshaper_8.safetensors": write_sd15,
    "checkpoints/DreamShaper_8_pruned.safetensors": write_sd15,
    "checkpoints/v2-1_768-ema-pruned.safetensors": lambda path: write_sd20(path, v=True),
    "checkpoints/sd_xl_base_1.0.safetensors": write_sdxl,
    "checkpoints/sd_xl_refiner_1.0.safetensors": write_refiner,
    "checkpoints/sd_xl_turbo_1.0_fp16.safetensors": write_sdxl,
    "checkpoints/flux1-dev-fp8.safetensors": write_flux_checkpoint,
    "checkpoints/flux1-schnell-fp8.safetensors": lambda path: write_flux_checkpoint(path, guidance=False),
    "loras/blindbox_v1_mix.safetensors": _lora,
    "loras/MoXinV1.safetensors": _lora,
    "vae/vae-ft-mse-840000-ema-pruned.safetensors": write_vae,
    "vae/ae.safetensors": lambda path: write_vae(path, latent=16),
    "text_encoders/clip_l.safetensors": write_clip_l,
    "text_encoders/t5xxl_fp16.safetensors": write_t5,
    "diffusion_models/flux1-dev.safetensors": write_flux,
    "diffusion_models/flux1-krea-dev_fp8_scaled.safetensors": write_flux,
    "diffusion_models/flux1-schnell.safetensors": lambda path: write_flux(path, guidance=False),
}
TEMPLATES = [
    "default",
    "lora",
    "lora_multiple",
    "embedding_example",
    "area_composition",
    "area_composition_square_area_for_subject",
    "hiresfix_latent_workflow",
    "latent_upscale_different_prompt_model",
    "sdxl_simple_example",
    "sdxl_refiner_prompt_example",
    "sdxlturbo_example",
    "flux_schnell",
    "flux_dev_checkpoint_example",
    "flux_schnell_full_text_to_image",
    "flux_dev_full_text_to_image",
    "flux1_krea_dev",
]
PIXELS = {"width", "height", "x", "y"}
STEPS = {"steps", "start_at_step", "end_at_step"}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("models")
    for name, write in FILES.items():
        write(root / name)
    with Session(root, output_dir=tmp_path_factory.mktemp("output"), dtype="fp32") as made:
        yield made


def small(graph: Graph) -> Graph:
    """The graph with an eighth of the pixels a side and a fifth of the steps."""
    for node in list(graph.nodes.values()):
        changes: dict[str, Value] = {}
        for name, value in node.inputs.items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            entry = implemented_schemas()[node.class_type].input(name)
            said = entry.options.get("min") if entry else None
            least = int(said) if isinstance(said, int | float) else 0
            if name in PIXELS:
                changes[name] = max(value // 64 * 8, least)
            elif name in STEPS and value < 10000:
                changes[name] = max(value // 5, least)
        graph = graph.with_inputs(node.id, changes)
    return graph


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_runs(session: Session, name: str) -> None:
    graph = small(read_source(FOLDER / f"{name}.json")[0].graph())
    result = session.run(graph)
    assert result.images
    for picture in result.images:
        assert np.asarray(picture).std() > 1, "a picture of one colour"
    assert all(receipt["complete"] for receipt in result.receipts)
    assert len(result.receipts) == sum(n.class_type.startswith("Lora") for n in graph.nodes.values())
