"""How well a backbone's features tell classes as they are: k-NN, with the training images as neighbours.

apla-mm knn CONFIG [CHECKPOINT] --k 10 20 --cfg-options data_root=FOLDER

CONFIG is one of classification. CHECKPOINT, which may be a delta, is of an adapted model; without one the weights are
measured that the config begins with. Training images are read by the test's pipeline; the test's data set is scored.
"""

import copy
from collections.abc import Sequence

from ..config_files import config_argument
from ..options.command_line import add_common_arguments, build_runner, load_config
from ..options.launching import end_process
from . import command_parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("knn", __doc__)
    parser.add_argument("config", type=config_argument, help="config file, of classification")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint or delta (default: where the config begins)")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20], help="neighbours that vote (default: 10 20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes' weights (default: 0.07)")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.launcher != "none":
        parser.error("all images are compared in one process: leave --launcher out")
    cfg = load_config(args)
    if cfg.get("default_scope") != "mmpretrain":
        raise SystemExit(f"{args.config} is none of classification (default_scope='mmpretrain')")
    if args.checkpoint is not None:
        cfg.load_from = args.checkpoint
    neighbours = copy.deepcopy(cfg.test_dataloader)
    neighbours.dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    neighbours.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_cfg = dict(type="NearestNeighboursLoop", neighbours=neighbours, k=args.k, temperature=args.temperature)
    for name, score in build_runner(cfg, ("train_dataloader", "test_dataloader")).test().items():
        print(f"{name} {score:.2f}")
    end_process()


if __name__ == "__main__":
    main()
