"""Classes of diffusers and transformers come alone, and what is imported afterwards is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loraloom.models.autoencoder import autoencoder_kinds
from loraloom.models.encoder import encoder_kinds
from loraloom.models.library_class import library_class
from loraloom.models.recognition import families

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("accelerate", "peft", "scipy", "sklearn", "sympy", "torchvision", "torch._dynamo")
UNET = "diffusers.models.unets.unet_2d_condition:UNet2DConditionModel"
QWEN = "transformers.models.qwen3.modeling_qwen3:Qwen3Model"

PATHS = sorted(
    {family.module.path for family in families()}
    | {kind.module.path for kind in autoencoder_kinds().values()}
    | {path for kind in encoder_kinds().values() for path in kind.classes}
)


def run(code: str) -> None:
    """In a process of its own: what is imported stays imported."""
    start = "import sys\nfrom loraloom.models.library_class import library_class\n"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_every_class_comes_without_what_it_does_not_need(library: str) -> None:
    paths = [path for path in PATHS if path.startswith(f"{library}.")]
    assert len(paths) > 5
    run(
        f"for path in {paths!r}:\n"
        "    made = library_class(path)\n"
        "    assert made.__module__ + ':' + made.__name__ == path\n"
        f"    found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not found, (path, found)\n"
    )


def test_classes_are_imported_ahead_and_what_is_installed_is_looked_through_when_it_is_asked_for() -> None:
    run(
        "from loraloom.models.library_class import import_ahead\n"
        "import importlib.metadata as metadata\n"
        "def packages_distributions():\n"
        "    raise AssertionError('all distributions were read')\n"
        "plain, metadata.packages_distributions = metadata.packages_distributions, packages_distributions\n"
        f"import_ahead(['diffusers.no_such:Thing', {UNET!r}]).join(120)\n"
        "assert 'diffusers.models.unets.unet_2d_condition' in sys.modules\n"
        f"library_class({UNET!r})\n"
        "assert metadata.packages_distributions is packages_distributions\n"
        "metadata.packages_distributions = plain\n"
        "from diffusers.utils import import_utils\n"
        "assert 'huggingface_hub.hf_api' not in sys.modules\n"
        "from diffusers.utils import hub_utils\n"
        "import huggingface_hub\n"
        "assert '# Title' in str(hub_utils.ModelCard('# Title'))\n"
        "assert hub_utils.ModelCard is huggingface_hub.ModelCard\n"
    )


def test_both_libraries_are_whole_afterwards() -> None:
    run(
        # transformers, which imports nothing of diffusers
        f"made = library_class({QWEN!r})\n"
        "import transformers, transformers.models.qwen3\n"
        "assert transformers.Qwen3Model is made is transformers.models.qwen3.Qwen3Model\n"
        "from transformers import AutoModel, Qwen3Config, Qwen3ForCausalLM, CLIPTextModel\n"
        "config = Qwen3Config(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,"
        " num_attention_heads=2, num_key_value_heads=1, head_dim=8)\n"
        "assert type(AutoModel.from_config(config)) is made\n"
        "import torch\n"
        "out = Qwen3ForCausalLM(config).generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False)\n"
        "assert out.shape[0] == 1\n"
        "assert not any(name.partition('.')[0] == 'diffusers' for name in sys.modules)\n"
        f"made = library_class({UNET!r})\n"
        "import builtins, diffusers, diffusers.models.unets\n"
        "from diffusers.models import unets, attention\n"
        "from diffusers.models.unets import *\n"
        "assert diffusers.UNet2DConditionModel is made is unets.UNet2DConditionModel\n"
        "assert UNet2DConditionModel is made\n"
        "assert diffusers.models.unets.unet_2d_condition.UNet2DConditionModel is made\n"
        "assert sys.modules['diffusers.models.unets'] is diffusers.models.unets\n"
        "assert type(diffusers.models.unets).__name__ == 'module'\n"
        "import diffusers.models.autoencoders as left\n"
        "left.AutoencoderKL = 1\n"
        "assert sys.modules['diffusers.models.autoencoders'].AutoencoderKL == 1\n"
        "from diffusers import StableDiffusionPipeline, EulerDiscreteScheduler\n"
        "from diffusers.hooks import HookRegistry\n"
        "assert HookRegistry is diffusers.hooks.hooks.HookRegistry\n"
        "assert StableDiffusionPipeline.__init__.__annotations__['unet'] is made\n"
        "assert builtins.__import__.__name__ == '__import__'\n"
        "assert not any('library_class' in type(finder).__module__ for finder in sys.meta_path)\n"
    )


def test_a_network_loads_saves_and_trains_as_ever(tmp_path: Path) -> None:
    """What was deferred (Accelerate, PEFT, quantisers, hooks) is there when it is used."""
    run(
        f"made = library_class({UNET!r})\n"
        "small = made(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,"
        " down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),"
        " up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), cross_attention_dim=32, attention_head_dim=8)\n"
        f"small.save_pretrained({str(tmp_path)!r})\n"
        f"again = made.from_pretrained({str(tmp_path)!r}, device_map='cpu')\n"
        "assert all((a == b).all() for a, b in zip(small.parameters(), again.parameters()))\n"
        "assert 'accelerate' in sys.modules\n"
        "from peft import LoraConfig\n"
        "again.add_adapter(LoraConfig(r=2, target_modules=['to_q']))\n"
        "assert any('lora_A' in name for name, _ in again.named_parameters())\n"
        "again.enable_layerwise_casting(__import__('torch').float16, __import__('torch').float32)\n"
    )


def test_peft_comes_without_language_models_and_is_whole_for_others() -> None:
    run(
        "make = library_class('peft:LoraConfig')\n"
        "inject = library_class('peft:inject_adapter_in_model')\n"
        "import torch, torch.distributed.tensor\n"
        "layer = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "inject(make(r=2, target_modules=['0']), layer)\n"
        "assert not {'scipy', 'sklearn', 'torchvision', 'torch._dynamo'} & set(sys.modules)\n"
        "import peft\n"
        "assert peft.LoraConfig is make\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "narrow = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,"
        " num_attention_heads=2, vocab_size=16)\n"
        "small = LlamaForCausalLM(narrow)\n"
        "prefix = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type='CAUSAL_LM')\n"
        "whole = peft.get_peft_model(small, prefix)\n"
        "assert whole(torch.tensor([[1, 2]])).logits.shape == (1, 2, 16)\n"
    )


def test_libraries_that_were_imported_before_are_taken_as_they_are() -> None:
    run(
        "import accelerate, diffusers.models.unets as unets\n"
        f"assert library_class({UNET!r}) is unets.UNet2DConditionModel\n"
        "assert type(sys.modules['diffusers.models.unets']).__name__ == 'module'\n"
    )


def test_other_threads_import_whole_packages_meanwhile() -> None:
    run(
        "import threading, diffusers, transformers\n"  # which replace themselves: not to be begun by two
        "seen = []\n"
        "def other():\n"
        "    import scipy.stats\n"
        "    from diffusers.models.transformers import FluxTransformer2DModel\n"
        "    seen.append((scipy.stats.beta.ppf(0.5, 1, 1), FluxTransformer2DModel.__name__))\n"
        "threads = [threading.Thread(target=other) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n"
        f"first, second = library_class({UNET!r}), library_class({QWEN!r})\n"
        "[thread.join(120) for thread in threads]\n"
        "assert seen == [(0.5, 'FluxTransformer2DModel')] * 2, seen\n"
        "import diffusers\n"
        "assert diffusers.UNet2DConditionModel is first\n"
    )


def test_nothing_else_imports_the_libraries() -> None:
    """A plain import would bring all along."""
    plain = re.compile(
        r"^(from|import) (diffusers|transformers)\b|^    +(from|import) (diffusers|transformers)\b"
    )
    for path in (SOURCE / "loraloom").rglob("*.py"):
        typed = path.read_text("utf-8").partition("if TYPE_CHECKING:")
        body = typed[0] + typed[2].partition("\n\n\n")[2]
        assert not [line for line in body.splitlines() if plain.match(line)], path


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ImportError):
        library_class("diffusers.models.unets.no_such_file:Nothing")
    with pytest.raises(AttributeError):
        library_class("diffusers.models.unets.unet_2d_condition:Nothing")
    assert library_class("collections:OrderedDict").__name__ == "OrderedDict"


def test_a_workflow_imports_nothing_heavy(tmp_path: Path) -> None:
    run(
        "import json\n"
        "from pathlib import Path\n"
        "import loraloom\n"
        "from loraloom.session import Session\n"
        "demo = Path(loraloom.__file__).parent / 'demo' / 'data'\n"
        f"with Session(demo / 'models', output_dir={str(tmp_path)!r}, dtype='fp32') as session:\n"
        "    graph = json.loads((demo / 'workflow.json').read_text('utf-8'))\n"
        "    assert session.run(graph, set={'KSampler.steps': 1}).images\n"
        f"found = [name for name in (*{HEAVY!r}, 'transformers', 'requests') if name in sys.modules]\n"
        "assert not found, found\n"
    )
