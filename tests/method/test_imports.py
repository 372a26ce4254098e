import subprocess
import sys

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
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_method_needs_torch_alone():
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
