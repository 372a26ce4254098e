"""Damages delta files in many ways, reads them, and puts what can be read on models.

Each file must be read, or refused by a DeltaError, in time; and each delta applied as it is, or refused with the model
bit-equal to before. In most files the damage is not given away by their SHA-256, and in half of them not by the base's
digests, so that it gets further. Models are adapted, plain, or state dicts.

Usage: PYTHONPATH=tests python tests/helpers/fuzz_delta.py [--files 20000] [--seed 0] [--seconds 5] [--keep FOLDER]
"""

import argparse
import collections
import copy
import json
import math
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers.comparisons import State, clone, differences
from helpers.nets import tiny_vit
from torch import nn

import apla_mm
from apla_mm.delta import Delta, DeltaError, apply_delta, extract_delta, fingerprint, load_delta, save_delta
from apla_mm.delta import file as delta_file


class TimeUp(BaseException):
    """Reading or applying took too long."""


class Target:
    """A base with deltas of it, and three things to put them on."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.base = self._make(dtype)
        self.states: list[State] = []
        self.deltas: list[Delta] = []
        for seed, (r, trainable) in enumerate([(3, ["1.*", "0.head.*"]), (2, ["1.*"]), ("full", ["*norm*"])]):
            trained = copy.deepcopy(self.base)
            apla_mm.adapt(trained, r=r, seed=seed, trainable=trainable)
            with torch.no_grad():
                for tensor in (*(p for p in trained.parameters() if p.requires_grad), trained[1].running_mean):
                    tensor.add_(torch.randn_like(tensor))
            self.deltas.append(extract_delta(trained, r=r, seed=seed, config="model = dict()", metrics={"mIoU": 0.5}))
        adapted = copy.deepcopy(self.base)
        apla_mm.adapt(adapted, r=3, seed=0)
        self.models: list[nn.Module] = [copy.deepcopy(self.base), adapted]
        self.state = clone(self.base.state_dict())

    @staticmethod
    def _make(dtype: torch.dtype) -> nn.Module:
        vit = tiny_vit(img_size=16, patch_size=8, embed_dim=8, num_classes=3)
        return nn.Sequential(vit, nn.BatchNorm1d(3)).to(dtype)

    def try_delta(self, delta: Delta, which: int, check_base: bool) -> bool:
        """Whether a delta is taken by a model, which is then made as it was.

        Raises:
            AssertionError: It was taken in part, or otherwise than it is.
        """
        target: Any = self.models[which] if which < 2 else dict(self.state)
        taken = True
        try:
            apply_delta(target, delta, check_base=check_base)
        except DeltaError:
            taken = False
        state = target.state_dict() if which < 2 else target
        expected = merged(self.state, delta) if taken else self.state
        wrong = differences(state, expected)
        if which < 2:
            self._restore(target)
        assert not wrong, f"{'taken' if taken else 'refused'}, otherwise than it should be: {wrong}"
        return taken

    def _restore(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, apla_mm.PartialLinear)]
        for layer in layers:
            rows = {"weight": layer.weight[layer.trained.channels], "bias": layer.bias[layer.trained.channels]}
            own = {"weight": layer.trained.weight, "bias": layer.trained.bias}
            assert not differences(rows, own), "trained rows lag behind"
        for name, tensor in model.state_dict().items():
            tensor.copy_(self.state[name])
        for layer in layers:
            layer.trained.adopt(layer.weight, layer.bias)
        assert not differences(model.state_dict(), self.state), "the model was not made as it was"


def merged(state: State, delta: Delta) -> State:
    """What a delta makes of a state dict, row by row."""
    state = clone(state) | delta.tensors
    for name, rows in delta.rows.items():
        for channel, row in zip(delta.channels[name.rpartition(".")[0]].tolist(), rows, strict=True):
            state[name][channel] = row
    return state


# Damage to bytes


def flip_bits(data: bytes, draw: random.Random, stop: int | None = None) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        damaged[draw.randrange(stop or len(data))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def flip_bits_of_header(data: bytes, draw: random.Random) -> bytes:
    return flip_bits(data, draw, header_end(data))


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.choice([draw.randrange(len(data)), draw.randrange(16), header_end(data), len(data) - 1])]


def insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.choice([0, 8, header_end(data), len(data), draw.randrange(len(data))])
    size = draw.choice([1, 4, 8, 100])
    start = draw.randrange(len(data))
    return data[:at] + draw.choice([draw.randbytes(size), b"\0" * size, data[start : start + size]]) + data[at:]


def remove(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.choice([1, 2, 8, 100]) :]


def overwrite(data: bytes, draw: random.Random) -> bytes:
    source, at, size = draw.randrange(len(data)), draw.randrange(len(data)), draw.choice([2, 8, 64, 500])
    part = data[source : source + size]
    return data[:at] + part + data[at + len(part) :]


def change_length(data: bytes, draw: random.Random) -> bytes:
    length = header_end(data) - 8
    lengths = [0, 1, 2**16, 2**30, 2**31, 2**32, 2**63, 2**64 - 1, len(data), len(data) - 8, draw.getrandbits(64)]
    return struct.pack("<Q", draw.choice([*lengths, length - 1, length + 1, length // 2])) + data[8:]


def keep_little(data: bytes, draw: random.Random) -> bytes:
    odd = [b"", data[:8], b"\x80\x04.", b"PK\x03\x04" + data, draw.randbytes(draw.randrange(200)), b"{" * 99]
    return draw.choice(odd)


def nest(data: bytes, draw: random.Random) -> bytes:
    depth = draw.choice([50, 127, 128, 1000, 100_000])
    start, end = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    header = start * depth + b"1" + end * draw.choice([depth, 0])
    return struct.pack("<Q", len(header)) + header + data[header_end(data) :]


# Damage to safetensors' header


def change_tensor(data: bytes, draw: random.Random) -> bytes:
    header = header_of(data)
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    what = draw.choice(["dtype", "shape", "offsets", "name", "name", "drop", "double", "field", "swap"])
    if what == "dtype":
        entry["dtype"] = draw.choice([*DTYPES, "", "X", None, 3])
    elif what == "shape":
        shape = entry["shape"]
        odd = [[], [0], [-1], [2**63], [2**64], [2**40, 0], [2**62, 0, 2**62], None]
        near = [shape[::-1], [*shape, 1], [1, *shape], [s * 2 for s in shape], [s + 1 for s in shape]]
        entry["shape"] = draw.choice(odd + near)
    elif what == "offsets":
        at = draw.randrange(2)
        offset = entry["data_offsets"][at]
        offsets = [0, -1, offset + 1, offset - 1, offset * 2, len(data), 2**63, 2**64, None]
        entry["data_offsets"][at] = draw.choice(offsets)
    elif what == "name":
        del header[name]
        group, _, own = name.partition("/")
        others = [f"tensors/{own}", f"rows/{own}", f"{group}/{own}.weight", f"{group}/{own[2:]}", group, f"x/{own}"]
        header[draw.choice([*NAMES, *others, *(f"{group}/{odd}" for odd in NAMES)])] = entry
    elif what == "drop":
        del header[name]
    elif what == "double":
        header[name + draw.choice(["", "2", ".weight"])] = copy.deepcopy(entry)
        entry["data_offsets"] = [0, 8]
    elif what == "field":
        entry[draw.choice(list(entry))] = draw.choice(VALUES)
    else:
        other = draw.choice([name for name in header if name != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    return with_header(data, header)


def retype(data: bytes, draw: random.Random) -> bytes:
    """Another dtype of the same size, another shape of as many elements: what safetensors has no reason to refuse."""
    header = header_of(data)
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    if draw.random() < 0.6:
        alike = {"F32": ["I32", "U32"], "I64": ["F64", "U64", "C64"], "BF16": ["F16", "I16", "U16"]}
        entry["dtype"] = draw.choice(alike.get(entry["dtype"], ["F32"]))
    else:
        size = math.prod(entry["shape"])
        entry["shape"] = draw.choice([[size], [1, size], [size, 1], entry["shape"][::-1], [*entry["shape"], 1]])
    return with_header(data, header)


def change_metadata(data: bytes, draw: random.Random) -> bytes:
    header = header_of(data)
    what = draw.randrange(4)
    if what == 0:
        header.pop("__metadata__")
    elif what == 1:
        header["__metadata__"] = draw.choice([*VALUES, {delta_file.KEY + "2": "{}"}])
    elif what == 2:
        header["__metadata__"][delta_file.KEY] = draw.choice([*VALUES, *TEXTS])
    else:
        text = header["__metadata__"][delta_file.KEY]
        header["__metadata__"][delta_file.KEY] = "".join(draw.sample(text, len(text)))
    return with_header(data, header)


# Damage that is well formed as safetensors


def change_delta_header(data: bytes, draw: random.Random) -> bytes:
    header = header_of(data)
    values = json.loads(header["__metadata__"][delta_file.KEY])
    place, key = values, draw.choice(list(values))
    while isinstance(place[key], dict) and place[key] and draw.random() < 0.8:
        place = place[key]
        key = draw.choice(list(place))
    what = draw.randrange(5)
    if what < 2:
        place[key] = draw.choice(VALUES)
    elif what == 2:
        del place[key]
    elif what == 3:
        place[draw.choice(NAMES)] = place[key]
    else:
        name = draw.choice(list(values["base"]))
        digest = values["base"].pop(name)
        values["base"][draw.choice([name, *NAMES])] = draw.choice([digest, digest[::-1], digest[1:], digest.upper()])
    header["__metadata__"][delta_file.KEY] = with_fingerprint(values, draw)
    return with_header(data, header)


def nest_in_delta_header(data: bytes, draw: random.Random) -> bytes:
    """Values so deep in one another that they may be read and not be written."""
    header = header_of(data)
    values = json.loads(header["__metadata__"][delta_file.KEY])
    values[draw.choice(["selection", "metrics", "extra"])] = {"a": "here"}
    used = len(list(traceback.walk_stack(None)))
    depth = draw.choice([10, 63, 64, *(sys.getrecursionlimit() - used - draw.randrange(30) for _ in range(9))])
    start, end = draw.choice([("[", "]"), ('{"a":', "}")])
    header["__metadata__"][delta_file.KEY] = json.dumps(values).replace('"here"', start * depth + "1" + end * depth)
    return with_header(data, header)


def rename_everywhere(data: bytes, draw: random.Random) -> bytes:
    """What a delta of another model looks like."""
    header = header_of(data)
    values = json.loads(header["__metadata__"].pop(delta_file.KEY))
    old, new = draw.choice([("blocks.0", "blocks.1"), ("blocks.0", "blocks.7"), ("0.", "1."), ("attn.proj", "mlp.fc1")])
    header, values["base"] = ({n.replace(old, new, 1): v for n, v in d.items()} for d in (header, values["base"]))
    header["__metadata__"] = {delta_file.KEY: with_fingerprint(values, draw)}
    return with_header(data, header)


def with_fingerprint(values: dict[str, Any], draw: random.Random) -> str:
    """A delta's header as JSON, mostly with the fingerprint of the digests that it holds."""
    if draw.random() < 0.8:
        with suppress(AttributeError, TypeError, ValueError, KeyError):
            values["fingerprint"] = fingerprint(values["base"])
    return json.dumps(values)


def change_channels(data: bytes, draw: random.Random) -> bytes:
    return change_values(data, draw, "channels/", "<q", [-1, -(2**63), 2**63 - 1, 2**32, 8, 7, 0, 0, 1, 5])


def change_weights(data: bytes, draw: random.Random) -> bytes:
    values = [math.nan, math.inf, -math.inf, -0.0, 1e-45, 1.0]
    return change_values(data, draw, ("rows/", "tensors/"), "<f", values)


def change_values(data: bytes, draw: random.Random, group: Any, kind: str, values: list[Any]) -> bytes:
    header, damaged = header_of(data), bytearray(data)
    names = [name for name in header if name.startswith(group)]
    if not names:
        return flip_bits(data, draw)
    size = struct.calcsize(kind)
    start, end = (header_end(data) + offset for offset in header[draw.choice(names)]["data_offsets"])
    for _ in range(draw.choice([1, 1, 3])):
        at = start + size * draw.randrange(max(1, (end - start) // size))
        damaged[at : at + size] = struct.pack(kind, draw.choice(values))
    return bytes(damaged)


def header_end(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : header_end(data)])


def with_header(data: bytes, header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + data[header_end(data) :]


DTYPES = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E8M0", "F4", "F16", "BF16", "I32", "F32", "F64", "I64", "U64", "C64"]
NAMES = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../../x",
    "rows/..",
    "channels/",
    "a\0b",
    "a\nb",
    "\ud800",
    "é.weight",
    "a" * 513,
    "a." * 10_000,
    "0.blocks.0.attn.proj",
    "0.blocks.0.attn.proj.weight",
    "0.blocks.1.attn.proj.bias",
    "0.blocks.0.mlp.fc1.weight",
    "1.running_mean",
    "__metadata__",
    "version",
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2,
    10**30,
    10**4000,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a" * 100_000,
    [],
    [1],
    {},
    {"a": "b"},
    {"a": 1},
    "0" * 64,
    "\0",
    "\ud800",
]
TEXTS = ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, "1" * 5000, '"', "nul", '{"version": 1e999}']
MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    flip_bits,
    flip_bits_of_header,
    truncate,
    insert,
    remove,
    overwrite,
    change_length,
    keep_little,
    nest,
    change_tensor,
    retype,
    change_metadata,
    change_delta_header,
    nest_in_delta_header,
    rename_everywhere,
    change_channels,
    change_weights,
]
#: after which the header can be parsed, so that more may follow
WELL_FORMED = [change_tensor, retype, change_delta_header, rename_everywhere, change_channels, change_weights]


def damage(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """A damaged file, and how."""
    steps = [draw.choice(WELL_FORMED) for _ in range(draw.choice([0, 0, 1, 2]))]
    steps.append(draw.choice(draw.choice([MUTATIONS, WELL_FORMED])))
    for step in steps:
        # what was damaged already may be beyond this step
        with suppress(ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error):
            data = step(data, draw)
    return data, steps[-1].__name__


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeUp(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    files: int, seed: int, folder: Path, seconds: float = 5.0, keep: Path | None = None
) -> collections.Counter[str]:
    """Damage files one after another.

    Args:
        files: How many.
        seed: Of the damage.
        folder: For the file.
        seconds: Limit for each file.
        keep: Where files that fail are kept.

    Returns:
        How many were ``'not read'``, ``'not applied'``, ``'applied'``, and the failures, each by a line of its own.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)
    targets = [Target(torch.float32), Target(torch.bfloat16)]
    path = folder / "fuzzed.safetensors"
    originals = []
    for target in targets:
        for delta in target.deltas:
            save_delta(delta, path)
            originals.append((target, path.read_bytes()))
    counts: collections.Counter[str] = collections.Counter()
    for i in range(files):
        target, original = draw.choice(originals)
        target = draw.choice([target] * 9 + targets)
        data, how = damage(original, draw)
        path.write_bytes(data)
        unseen = draw.random() < 0.75
        check_base, which, allow = draw.random() < 0.5, draw.randrange(3), draw.random() < 0.5
        try:
            with time_limit(seconds), mock.patch.object(delta_file, "_check_content") if unseen else nullcontext():
                delta = load_delta(path, allow_nonfinite=allow)
                result = "applied" if target.try_delta(delta, which, check_base) else "not applied"
        except DeltaError:
            result = "not read"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust's is no Exception
            result = f"file {i} ({how}): {type(error).__name__}: {str(error)[:200]}"
            if keep is not None:
                (keep / f"{i}.safetensors").write_bytes(data)
        counts[result] += 1
    return counts


EXPECTED = ("not read", "not applied", "applied")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--seconds", type=float, default=5, help="limit for each file")
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    args = parser.parse_args()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(args.files, args.seed, Path(folder), args.seconds, args.keep)
    failures = {line: count for line, count in counts.items() if line not in EXPECTED}
    print("\n".join(failures))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{args.files} files in {time.perf_counter() - start:.0f} s, memory grew by {memory:.0f} MiB")
    print(f"{', '.join(f'{counts[kind]} {kind}' for kind in EXPECTED)}, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
