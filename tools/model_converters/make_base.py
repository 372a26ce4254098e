"""Make the base file of a delta from the weights that training began with, which its config names.

python tools/model_converters/make_base.py configs/seg/apla_vitb_ade.py seg.safetensors
It is written into bases/ beside the delta and compared with the delta's digests: another base is refused. tools/test.py
and tools/train.py do the same by themselves.
"""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from apla_mm.loading.base_from_config import make_base


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file that the delta was trained with")
    parser.add_argument("delta", type=Path, help="delta: .safetensors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the base file (default: bases beside DELTA)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE", help="override the config"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # as tools/train.py does
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    print(make_base(cfg, args.delta, args.out))


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
