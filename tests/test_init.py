"""What an import of the package loads, registers and leaves alone, in fresh processes."""

import pytest
from helpers.processes import run_python

pytestmark = pytest.mark.slow

CODE = """
import sys

class Filter:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {allowed}:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Filter, sys.meta_path)
{code}
"""
TORCHS_OWN = ["torch", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath", "numpy", "filelock", "jinja2"]


def run(code: str, *allowed: str) -> str:
    blocked = CODE.format(allowed={"apla_mm", *TORCHS_OWN, *allowed}, code=code)
    return run_python(blocked).stdout.strip()


def test_five_lines_for_a_torch_model_need_torch_alone():
    code = """
import torch
from torch import nn
from apla_mm import adapt, merge, register_attention
import apla_mm.method, apla_mm.measure

class A(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
    def forward(self, x):
        return self.proj(x)

register_attention(A, "proj")
model = nn.Sequential(A(), A())
print(adapt(model, r=2).trained)
model(torch.randn(1, 4)).sum().backward()
merge(model)
print(sorted(m for m in sys.modules if m.partition(".")[0] in ("mmengine", "timm", "safetensors", "mmcv")))
"""
    assert run(code) == "20\n[]"


def test_backbone_needs_torch_timm_and_safetensors_alone():
    code = """
import torch
from apla_mm.models import APLAViT
vit = APLAViT("vit_tiny_patch16_224", pretrained=False, apla=dict(r=2))
print(tuple(vit(torch.randn(1, 3, 32, 32))[0].shape))
"""
    timms_own = "timm torchvision safetensors yaml PIL packaging tqdm huggingface_hub fsspec hf_xet requests certifi"
    hubs_own = "httpx httpx2 httpcore httpcore2 anyio sniffio h11 idna truststore typer click rich"
    assert run(code, *timms_own.split(), *hubs_own.split()).endswith("(1, 192, 2, 2)")


OTHERS = ("mmengine", "mmcv", "mmseg", "mmdet", "mmpretrain", "timm", "torchvision", "transformers")
LIGHT = tuple(
    f"apla_mm{part}" for part in ("", ".method", ".dense", ".delta", ".delta.weights_file", ".tasks", ".text")
)


def fresh(code: str) -> str:
    return run_python(code).stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_nothing_of_others(module):
    code = f"import sys, {module}; print(sorted({{m.partition('.')[0] for m in sys.modules}} & set({OTHERS})))"
    assert fresh(code) == "[]"


ORDERS = {
    "apla_mm first": "import apla_mm, mmengine",
    "mmengine first": "import mmengine, apla_mm",
    "a part of mmengine after apla_mm": "import apla_mm; from mmengine.registry import Registry",
    "mmcv after apla_mm": "import apla_mm, mmcv",
    "mmseg after apla_mm": "import apla_mm, mmseg",
    "a part of mmdet after apla_mm": "import apla_mm; from mmdet.structures import DetDataSample",
    "custom_imports": "from mmengine import Config; Config.fromstring(TEXT, '.py')",
    "custom_imports after apla_mm": "import apla_mm; from mmengine import Config; Config.fromstring(TEXT, '.py')",
    "custom_imports of a file": """
import tempfile, os
from mmengine import Config
path = os.path.join(tempfile.mkdtemp(), 'config.py'); open(path, 'w').write(TEXT); Config.fromfile(path)
""",
}


@pytest.mark.parametrize("order", ORDERS)
def test_parts_are_registered_in_either_order(order):
    code = f"""
TEXT = "custom_imports = dict(imports=['apla_mm'])"
{ORDERS[order]}
from mmengine.registry import HOOKS, LOOPS, MODELS
print([parts.get(name).__name__ for parts, name in (
    (HOOKS, 'APLAHook'), (HOOKS, 'AtomicCheckpointHook'), (LOOPS, 'ResumableTrainLoop'), (MODELS, 'APLAViT'))])
"""
    assert fresh(code) == "['APLAHook', 'AtomicCheckpointHook', 'ResumableTrainLoop', 'APLAViT']"


def test_nothing_of_others_is_replaced():
    """Functions and classes in the modules and classes of others are the same objects before and after."""
    code = f"""
import sys
import mmcv.transforms, mmengine._strategy, mmengine.hooks, mmengine.runner, mmengine.visualization, timm, torchvision
import numpy, torch.distributed.fsdp.wrap, torch.utils.flop_counter, safetensors.torch
import mmdet.models, mmseg.models
from mmengine.fileio import backends
from mmengine.runner import CheckpointLoader

def callables():
    found = {{}}
    for module in list(sys.modules.values()):
        if getattr(module, '__name__', '').partition('.')[0] not in {(*OTHERS, "torch", "numpy", "safetensors")}:
            continue
        for name, value in list(vars(module).items()):
            if callable(value):
                found[module.__name__, name] = value
            if isinstance(value, type) and value.__module__ == module.__name__:
                found.update({{(module.__name__, name, key): one for key, one in vars(value).items()
                              if callable(one) or isinstance(one, (classmethod, staticmethod, property))}})
    return found

before, schemes, entries = callables(), dict(CheckpointLoader._schemes), dict(backends.registry_utils.backends)
prefixes = dict(backends.registry_utils.prefix_to_backends)
import apla_mm.registration
after = callables()
assert len(before) > 10000
assert [key for key, value in before.items() if after.get(key) is not value] == []
assert {{key: CheckpointLoader._schemes[key] for key in schemes}} == schemes
assert {{key: backends.registry_utils.backends[key] for key in entries}} == entries
assert backends.registry_utils.prefix_to_backends == prefixes
print(sorted(CheckpointLoader._schemes.keys() - schemes), sorted(backends.registry_utils.backends.keys() - entries))
"""
    assert fresh(code) == r"['.*\\.safetensors$', 'apla-mm:'] ['apla_mm.atomic']"
