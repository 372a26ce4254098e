"""What fine-tuning costs, method by method: memory, arithmetic and time of a training step.

Of a timm ViT with a linear classifier: apla-mm benchmark vit_base_patch16_224 --img-size 512
Of a whole segmentor or detector: apla-mm benchmark configs/seg/apla_vitb_ade.py
What it would cost, counted in seconds and in no memory, of any size: add --count; what fits: --memory 12GiB
Weights and data are random. Needs torch and timm alone for the former.
The first method of a table is 1.000, full fine-tuning unless --only leaves it out.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor, nn

import apla_mm

from ..config_files import config_argument
from ..measure import (
    ComparedMethod,
    TrainingStep,
    compared_methods,
    count_peak,
    count_step,
    interleaved_times,
    largest_batch,
    peak_bytes,
    step_cost,
)
from ..method.recompute import MODES
from ..text import format_bytes
from . import command_parser

MIB = 2**20
NOT_MEASURED = (
    ValueError,
    ImportError,
    RuntimeError,
)  # what a method that does not fit the model raises, or the device
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Classifier(nn.Module):
    """A timm backbone and a linear classifier of 150 classes."""

    def __init__(self, name: str, img_size: int) -> None:
        super().__init__()
        import timm

        backbone: Any = timm.create_model(name, num_classes=0, img_size=img_size)
        self.backbone, self.head = backbone, nn.Linear(backbone.num_features, 150)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).clone())  # a view of one token would keep all of them


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmark", __doc__)
    parser.add_argument("model", type=model_argument, help="name of a timm ViT, or a config file")
    parser.add_argument("--img-size", type=int, default=512, help="height and width of the images (default: 512)")
    parser.add_argument("--batch-size", type=int, default=2, help="images in a batch (default: 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: forward under autocast")
    parser.add_argument("--r", nargs="+", type=number, default=[0.125, 8, "full"], help="channels that train, for APLA")
    modes = MODES[1:]
    parser.add_argument("--recompute", nargs="*", choices=modes, default=modes, help="modes, with the first r")
    parser.add_argument(
        "--heads",
        nargs="+",
        choices=HEADS,
        default=["stock"],
        help="of a config: the plain ones, LeanHeadsHook's, or its recomputed ones; several are measured one by one",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose names begin so; NAME$ is one alone")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each method (default: 5)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each before that (default: 2)")
    parser.add_argument("--fused", action="store_true", help="fused AdamW")
    parser.add_argument("--compile", action="store_true", help="measure each also compiled, by torch.compile")
    parser.add_argument("--backbone-only", action="store_true", help="of a config: the backbone, and no head")
    parser.add_argument("--inference", action="store_true", help="time inference instead, APLA merged as well")
    parser.add_argument("--count", action="store_true", help="run nothing: count on tensors without memory")
    parser.add_argument("--memory", type=memory, metavar="SIZE", help="the largest batch that fits, such as 12GiB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time against memory")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="write a trace of a step of each method here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.given = sys.argv[1:] if argv is None else list(argv)
    if args.heads != ["stock"] and (args.backbone_only or not args.model.endswith(".py")):
        parser.error("--heads goes with a config's whole model")
    if args.backbone_only and not args.model.endswith(".py"):
        parser.error("--backbone-only goes with a config")
    if args.inference and args.model.endswith(".py") and not args.backbone_only:
        parser.error("--inference of a config is that of the backbone: add --backbone-only")
    if args.inference and (args.plot or args.profile):
        parser.error("--inference has no memory to plot, and no step to profile")
    args.count = args.count or args.memory is not None
    if args.count and (args.inference or args.compile or args.plot or args.profile):
        parser.error("--count and --memory run nothing: leave out --inference, --compile, --plot and --profile")
    if args.count and torch.device(args.device).type == "cuda" and not torch.backends.cuda.is_built():
        parser.error("this torch is built without CUDA and cannot count its kernels: leave out --device")
    if args.rounds < 1 or args.warm_up < 0:
        parser.error("--rounds must be 1 or more, --warm-up 0 or more")
    for file in filter(None, (args.json, args.plot)):  # before hours of work are lost
        file.parent.mkdir(parents=True, exist_ok=True)
    if args.plot:
        import matplotlib  # noqa: F401
    return args


def model_argument(text: str) -> str:
    return config_argument(text) if text.endswith(".py") else text


def number(text: str) -> int | float | str:
    return "full" if text == "full" else float(text) if "." in text else int(text)


def memory(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])i?B?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 12GiB or 800MiB")
    return int(float(found[1]) * 2 ** (10 * (" KMGT".index(found[2]))))


#: heads -> what names of variants say of them
HEADS = {"stock": "", "lean": ", lean heads", "recomputed": ", heads recomputed"}


@dataclass(frozen=True)
class Variant:
    """A method, with which heads, compiled or not."""

    method: ComparedMethod
    compiled: bool = False
    heads: str = "stock"

    @property
    def name(self) -> str:
        return self.method.name + HEADS[self.heads] + ", compiled" * self.compiled


def build_timm(args: argparse.Namespace, compiled: bool) -> tuple[Any, Callable[[], Any]]:
    model = on_device(args, lambda: Classifier(args.model, args.img_size))
    x = random_images(args)
    y = torch.randint(150, (args.batch_size,), device=args.device)
    forward = torch.compile(model) if compiled else model
    return model, lambda: nn.functional.cross_entropy(forward(x), y)


def on_device(args: argparse.Namespace, make: Callable[[], nn.Module]) -> nn.Module:
    if not args.count:
        return make().to(args.device)
    with torch.device(args.device):  # a module of fake tensors cannot be moved
        return make()


def random_images(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)


def build_from_config(args: argparse.Namespace, compiled: bool) -> tuple[Any, Callable[[], Any]]:
    from mmengine.registry import MODELS, init_default_scope

    from ..config_files import read_config
    from ..data.synthetic_batch import synthetic_batch
    from ..options.shared_options import apply_shared_options

    cfg = read_config(args.model)
    if args.count and not args.backbone_only and "decode_head" not in cfg.model:
        raise SystemExit(
            f"{args.model}: a detector's loss depends on what it finds and cannot be counted without running: "
            "add --backbone-only, or leave out --count and --memory"
        )
    apply_shared_options(cfg, dict(crop_size=args.img_size))
    init_default_scope(cfg.get("default_scope", "mmengine"))
    backbone = cfg.model.backbone
    for key in ("apla", "frozen"):
        backbone.pop(key, None)
    backbone.update(dict(pretrained=False) if backbone.type == "APLAViT" else dict(init_cfg=None))
    model: Any = on_device(args, lambda: MODELS.build(cfg.model))
    if args.backbone_only:
        x = random_images(args)
        part: Any = nn.ModuleDict(dict(backbone=model.backbone))
        run = torch.compile(part.backbone) if compiled else part.backbone
        return part, lambda: sum(y.mean() for y in run(x))
    if args.count:
        model.data_preprocessor.to(args.device)
    data = model.data_preprocessor(synthetic_batch(model, args.img_size, args.batch_size), training=True)
    forward = torch.compile(model) if compiled else model

    def loss() -> Tensor:
        return model.parse_losses(forward(**data, mode="loss"))[0]

    return model, loss


def build(args: argparse.Namespace, variant: Variant) -> TrainingStep:
    """Where a variant changes the model: its parts may become others in place, and the loss is that of the whole."""
    torch.manual_seed(0)
    model, loss = (build_from_config if args.model.endswith(".py") else build_timm)(args, variant.compiled)
    variant.method.method.prepare(model.backbone)
    if variant.heads != "stock":
        from ..models.heads.lean_model import make_model_lean

        lean = make_model_lean(model, variant.heads == "recomputed")
        if all(lean.heads.values()) and not lean.parts:
            raise ValueError(f"no head can be lean: {'; '.join(lean.heads.values()) or 'there is none'}")
    return TrainingStep(model.train(), loss, DTYPES[args.dtype], args.fused)


def run_worker(args: argparse.Namespace, variant: Variant) -> None:
    """Measure one method's memory in this process, which has no other; print it as the last line."""
    device = torch.device(args.device)
    result: dict[str, Any] = dict(baseline_bytes=peak_bytes(device))
    try:
        step = build(args, variant)
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # compiling and tuning need more
        step()
        if device.type == "cuda" or not variant.compiled:  # main memory also holds the compiler
            result["peak_bytes"] = peak_bytes(device)
        if variant.compiled:  # inside a graph nothing can be counted
            result["trained"] = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
        else:
            result |= asdict(step_cost(step))
    except NOT_MEASURED as error:
        result = dict(error=describe(error))
    print(json.dumps(result))


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def in_own_process(args: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    command = [sys.executable, "-m", "apla_mm.commands.benchmark", *args.given, "--worker", variant.name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        return dict(error=f"its process was killed by signal {-done.returncode}; out of memory?")
    if done.returncode:
        return dict(error=(done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for variant in variants:  # first, so that nothing else is on the device
        print(f"# {variant.name}", file=sys.stderr, flush=True)
        rows.append(dict(method=variant.name, **in_own_process(args, variant)))
        if "error" in rows[0]:  # all else is compared with it
            raise SystemExit(f"{variant.name}: {rows[0]['error']}")
    steps = {v.name: build(args, v) for v, row in zip(variants, rows, strict=True) if "error" not in row}
    times = interleaved_times(steps, torch.device(args.device), args.rounds, args.warm_up)
    if args.profile:
        for name, step in steps.items():
            profile(step, args.profile / name.replace(" ", "_").replace(",", ""))
    return with_ratios(rows, times)


def count(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    def count_one(variant: Variant) -> dict[str, Any]:
        return asdict(count_step(lambda: build(args, variant)))

    return with_ratios([counted_row(variant, count_one) for variant in variants], {})


def count_fits(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    """The largest batch of each variant, and the options that a training with it needs."""

    def count_one(variant: Variant) -> dict[str, Any]:
        def peak(size: int) -> int:
            return count_peak(lambda: build(argparse.Namespace(**{**vars(args), "batch_size": size}), variant))

        try:
            fit = largest_batch(peak, args.memory)
        except NOT_MEASURED:
            fit = largest_batch(peak, args.memory, smallest=2)  # a norm over a batch of one value has no variance
        return asdict(fit) | dict(options=options_for(args, variant, fit.batch_size) if fit.batch_size else "")

    return [counted_row(variant, count_one) for variant in variants]


def counted_row(variant: Variant, count_one: Callable[[Variant], dict[str, Any]]) -> dict[str, Any]:
    print(f"# {variant.name}", file=sys.stderr, flush=True)
    try:
        return dict(method=variant.name, **count_one(variant))
    except NOT_MEASURED as error:
        return dict(method=variant.name, error=describe(error))


def options_for(args: argparse.Namespace, variant: Variant, batch_size: int) -> str:
    """What a training is told for this variant: its --cfg-options, or without a config the call."""
    key = variant.method.key
    if not args.model.endswith(".py"):
        return f"apla_mm.methods.build_method({key!r}).prepare(backbone)" if key else ""
    batch = f"train_dataloader.batch_size={batch_size}"
    if variant.heads == "recomputed":
        batch += " default_hooks.lean_heads.recompute=True"
    return f"{batch}; no config has this method" if key is None else f"{batch} method={key}"


def with_ratios(rows: list[dict[str, Any]], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Ratios to the first row; of times, the median of the rounds' ratios."""
    first = times[next(iter(times))] if times else []
    for row in rows:
        if "error" in row:
            continue
        if times:
            seconds = times[row["method"]]
            row["step_seconds"] = statistics.median(seconds)
            row["all_step_seconds"] = seconds
            row["step_ratio"] = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        for key in ("saved_bytes", "peak_bytes"):
            if key in row and rows[0].get(key):
                row[key.replace("bytes", "ratio")] = row[key] / rows[0][key]
    return rows


def measure_inference(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    runs = {}
    for variant in variants:
        for merged in (False, True) if variant.name.startswith("APLA") else (False,):
            name = variant.name + ", merged" * merged
            try:
                step = build(args, variant)
            except NOT_MEASURED as error:
                rows.append(dict(method=name, error=describe(error)))
                continue
            if merged:
                apla_mm.merge(step.model)
            step.model.eval()
            runs[name] = inference(step)
            rows.append(dict(method=name))
    if not runs:
        raise SystemExit(f"{rows[0]['method']}: {rows[0]['error']}")
    return with_ratios(rows, interleaved_times(runs, torch.device(args.device), args.rounds, args.warm_up))


def inference(step: TrainingStep) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            step.forward()

    return run


def profile(step: TrainingStep, folder: Path) -> None:
    """Write a trace for a viewer, and the operators by their own time."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (step.device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    key = f"self_{step.device.type}_time_total"
    (folder / "operators.txt").write_text(profiler.key_averages().table(sort_by=key, row_limit=40))


def with_ratio(row: dict[str, Any], what: str) -> str:
    text = f"{row[f'{what}_bytes'] / MIB:.0f}"
    return f"{text} ({row[f'{what}_ratio']:.3f})" if f"{what}_ratio" in row else text


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "method": lambda row: row["method"],
    "trains": lambda row: f"{row['trained']:,}",
    "kept for backward, MiB": lambda row: with_ratio(row, "saved"),
    "model, MiB": lambda row: f"{row['model_bytes'] / MIB:.1f}",
    "gradients, MiB": lambda row: f"{row['gradient_bytes'] / MIB:.1f}",
    "AdamW, MiB": lambda row: f"{row['optimizer_bytes'] / MIB:.1f}",
    "forward, GFLOP": lambda row: f"{row['forward_flops'] / 1e9:.3g}",
    "backward, GFLOP": lambda row: f"{row['backward_flops'] / 1e9:.3g}",
    "peak memory, MiB": lambda row: with_ratio(row, "peak"),
    "largest batch": lambda row: f"{row['batch_size']}",
    "options": lambda row: row["options"],
    "time, ms": lambda row: f"{1e3 * row['step_seconds']:.0f} ({row['step_ratio']:.3f})",
}


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown, and below it what could not be measured."""
    measured = [row for row in rows if "error" not in row]
    if not measured:
        return "\n".join(f"{row['method']}: not measured: {row['error']}" for row in rows)
    columns = {title: [show_or_nothing(show, row) for row in measured] for title, show in COLUMNS.items()}
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    lines = []
    for title, cells in columns.items():
        width = max(map(len, (title, *cells)))
        left = title in ("method", "options")
        rule = "-" * width if left else "-" * (width - 1) + ":"
        lines.append([cell.ljust(width) if left else cell.rjust(width) for cell in (title, rule, *cells)])
    text = [f"| {' | '.join(line)} |" for line in zip(*lines, strict=True)]
    if "baseline_bytes" in measured[0]:
        baseline = max(row["baseline_bytes"] for row in measured) / MIB
        text.append(f"\nPeak memory holds {baseline:.0f} MiB that a process has before there is a model.")
    text += [f"{row['method']}: not measured: {row['error']}" for row in rows if "error" in row]
    return "\n".join(text)


def show_or_nothing(show: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
    try:
        return show(row)
    except KeyError:
        return ""


def plot(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    measured = [row for row in rows if "peak_ratio" in row]
    for i, row in enumerate(measured):
        ours = row["method"].startswith("APLA")
        edge = "black" if ours else "none"
        style: dict[str, Any] = dict(marker="o" if ours else "s", color=f"C{i % 10}", markeredgecolor=edge)
        position = (row["peak_ratio"], row["step_ratio"])
        axes.plot(*position, linestyle="none", markersize=9, label=f"{i + 1}  {row['method']}", **style)
        axes.annotate(str(i + 1), position, xytext=(6, 4), textcoords="offset points", fontsize=9)
    one = f"{rows[0]['method']} = 1"
    axes.set(xlabel=f"peak memory, {one}", ylabel=f"time of a step, {one}", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)


def machine(device: str) -> dict[str, Any]:
    name = platform.processor()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return dict(device=name, threads=torch.get_num_threads(), cores=os.cpu_count(), torch=torch.__version__)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    methods = compared_methods(args.r, [] if args.inference else args.recompute)
    if args.device.startswith("cuda") and not args.count:
        torch.cuda.set_device(args.device)  # its events are the clock
    if args.compile:
        # all variants share a forward, of which torch compiles a few versions and runs the rest as they are
        torch._dynamo.config.recompile_limit = 4 * len(methods)
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    variants = [
        Variant(method, compiled, heads)
        for method in methods
        for heads in args.heads
        for compiled in (False, True)[: 1 + args.compile]
    ]
    if args.worker:
        return run_worker(args, next(variant for variant in variants if variant.name == args.worker))
    if args.only:
        names = [method.name for method in methods]
        variants = [variant for variant in variants if f"{variant.name}$".startswith(tuple(args.only))]
        if not variants:
            raise SystemExit(f"--only {args.only}: no method's name begins so; there are {names}")
    take = measure_inference if args.inference else count_fits if args.memory else count if args.count else measure
    rows = take(args, variants)
    title = f"{Path(args.model).stem}, {args.img_size} x {args.img_size}"
    title += f", within {format_bytes(args.memory)}" if args.memory else f", batch {args.batch_size}"
    if args.count:
        described = dict(device=args.device, torch=torch.__version__)
        print(f"{title}, {args.dtype}; counted, not run; kernels of {args.device}, torch {torch.__version__}\n")
    else:
        described = machine(args.device)
        title += f", {args.dtype}"
        print(f"{title}; {described['device']}, {described['threads']} threads, torch {described['torch']}\n")
    print(format_rows(rows))
    if args.json:
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "given"}
        args.json.write_text(json.dumps(dict(machine=described, arguments=arguments, rows=rows), indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot, title)


if __name__ == "__main__":
    main()
