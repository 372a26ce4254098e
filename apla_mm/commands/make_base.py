"""Make the base file of a delta from the weights that training began with, which its config names.

apla-mm make-base configs/seg/apla_vitb_ade.py seg.safetensors
It is written into bases/ beside the delta and compared with the delta's digests: another base is refused. apla-mm test
and apla-mm train do the same by themselves.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import init_default_scope

from ..config_files import config_argument, read_model_config
from ..loading.base_from_config import make_base
from ..options.command_line import add_cfg_options
from ..options.known_keys import check_keys, merge_options
from ..options.method import take_method
from ..options.shared_options import apply_shared_options
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("make-base", __doc__)
    parser.add_argument("config", type=config_argument, help="config file that the delta was trained with")
    parser.add_argument("delta", type=Path, help="delta: .safetensors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the base file (default: bases beside DELTA)")
    add_cfg_options(parser)
    return parser.parse_args(argv)


@errors_in_one_line(OSError, RuntimeError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # as apla-mm train does
    cfg = read_model_config(args.config)
    check_keys(cfg, args.cfg_options)
    options = take_method(cfg, args.cfg_options)
    apply_shared_options(cfg, options)
    merge_options(cfg, options)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    print(make_base(cfg, args.delta, args.out))


if __name__ == "__main__":
    main()
