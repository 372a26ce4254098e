"""Make the base file of a delta from the weights that training began with, which its config names.

apla-mm make-base configs/seg/apla_vitb_ade.py seg.safetensors
It is written into bases/ beside the delta and compared with the delta's digests: another base is refused. apla-mm test
and apla-mm train do the same by themselves.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction
from mmengine.registry import init_default_scope

from ..config_files import config_argument, read_config
from ..loading.base_from_config import make_base
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("make-base", __doc__)
    parser.add_argument("config", type=config_argument, help="config file that the delta was trained with")
    parser.add_argument("delta", type=Path, help="delta: .safetensors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the base file (default: bases beside DELTA)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE", help="override the config"
    )
    return parser.parse_args(argv)


@errors_in_one_line(OSError, RuntimeError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # as apla-mm train does
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    print(make_base(cfg, args.delta, args.out))


if __name__ == "__main__":
    main()
