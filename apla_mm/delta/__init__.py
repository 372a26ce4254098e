"""Deltas: what was trained, and for which base. Needs torch and safetensors alone.

A delta file is a safetensors file. Its tensors are named

- ``channels/<projection>``: int64 (r,), ascending, the output channels of a projection that trained;
- ``rows/<projection>.weight`` (r, in) and ``rows/<projection>.bias`` (r,): what they became;
- ``tensors/<name>``: every other tensor that trained or moved, whole: heads, necks, norm statistics;

names being those of the state dict. Its metadata hold one key, ``apla_delta``: a JSON object of the fields of
:class:`Header`, of ``fingerprint``, the base's, for people to read, and of ``sha256``, a digest of all the rest.
"""

from .apply import apply_delta
from .delta import Delta
from .digests import base_digests, check_base, fingerprint
from .errors import BaseMismatchError, DeltaError
from .file import load_delta, save_delta
from .header import Header
from .make import extract_delta, extract_delta_from_digests, extract_delta_from_states

__all__ = [
    "BaseMismatchError",
    "Delta",
    "DeltaError",
    "Header",
    "apply_delta",
    "base_digests",
    "check_base",
    "extract_delta",
    "extract_delta_from_digests",
    "extract_delta_from_states",
    "fingerprint",
    "load_delta",
    "save_delta",
]
