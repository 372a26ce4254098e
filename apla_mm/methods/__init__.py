"""Ways to fine-tune a backbone, by name: what a config can ask for, and what is compared. Needs torch alone."""

from .apla import APLA
from .lora import LoRA
from .lora_linear import LoRALinear
from .own_parameters import WO, BitFit, Full, Head, Norm
from .registry import METHODS, build_method, method_text, read_method, register_method
from .tuning_method import TuningMethod

__all__ = [
    "APLA",
    "METHODS",
    "WO",
    "BitFit",
    "Full",
    "Head",
    "LoRA",
    "LoRALinear",
    "Norm",
    "TuningMethod",
    "build_method",
    "method_text",
    "read_method",
    "register_method",
]
