"""What fine-tuning costs, method by method: memory, arithmetic and time of a training step.

Of a timm ViT with a linear classifier: apla-mm benchmark vit_base_patch16_224 --img-size 512
Of a whole segmentor or detector: apla-mm benchmark configs/seg/apla_vitb_ade.py
What it would cost, counted in seconds and in no memory, of any size: add --count; what fits: --memory 12GiB
Weights and data are random. Needs torch and timm alone for the former.
The first method of a table is 1.000, full fine-tuning unless --only leaves it out.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch._dynamo.config

from ..benchmark.measured import count, count_fits, measure, measure_inference, run_worker
from ..benchmark.report import format_rows, machine, plot
from ..benchmark.variants import DTYPES, HEADS, Variant
from ..config_files import config_argument
from ..devices import find_device
from ..measure import compared_methods
from ..method.memory.recompute import MODES
from ..text import format_bytes
from . import at_least_one, command_parser, file_to_write, timm_model


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmark", __doc__)
    parser.add_argument("model", type=model_argument, help="name of a timm ViT, or a config file")
    parser.add_argument(
        "--img-size", type=at_least_one, default=512, help="height and width of the images (default: 512)"
    )
    parser.add_argument("--batch-size", type=at_least_one, default=2, help="images in a batch (default: 2)")
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
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE", help="draw time against memory")
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
    if not args.count:
        try:
            find_device(args.device)
        except ValueError as error:
            parser.error(str(error))
    if args.rounds < 1 or args.warm_up < 0:
        parser.error("--rounds must be 1 or more, --warm-up 0 or more")
    if args.plot:
        import matplotlib  # noqa: F401
    return args


def model_argument(text: str) -> str:
    return config_argument(text) if text.endswith(".py") else timm_model(text)


def number(text: str) -> int | float | str:
    return "full" if text == "full" else float(text) if "." in text else int(text)


def memory(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])i?B?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 12GiB or 800MiB")
    return int(float(found[1]) * 2 ** (10 * (" KMGT".index(found[2]))))


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
    if all("error" in row for row in rows):
        raise SystemExit(1)
    if args.plot:
        plot(rows, args.plot, title)


if __name__ == "__main__":
    main()
