"""The loop that tests a backbone by its nearest training images."""

from collections.abc import Sequence
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from ...internals import load_path
from ...method.wrappers import unwrapped
from .nearest_neighbours import labelled_features, nearest_classes


class NearestNeighboursLoop(BaseLoop):
    """Scores the features of a classifier's backbone by weighted k-NN, in place of its head.

    ``test_cfg=dict(type='NearestNeighboursLoop', neighbours=<a data loader>)``. Where no checkpoint is loaded, the
    backbone begins with the weights that it names, as training does.

    Args:
        runner: The runner, whose model is mmpretrain's ``ImageClassifier``.
        dataloader: Of the images to tell.
        evaluator: Taken for mmengine's sake; scores are top-1 accuracies, ``knn/top1_k20`` and the like, in %.
        neighbours: The data loader of the training images, read as those to tell are.
        k: How many neighbours vote, each in its turn.
        temperature: Of the votes' weights.

    Raises:
        ValueError: There are several processes.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        evaluator: Any,
        neighbours: Any,
        k: Sequence[int] = (10, 20),
        temperature: float = 0.07,
    ) -> None:
        super().__init__(runner, dataloader)
        if get_world_size() > 1:
            raise ValueError("NearestNeighboursLoop compares all images with all in one process: run it without others")
        self.neighbours = Runner.build_dataloader(neighbours)
        self.k, self.temperature = list(k), temperature
        if load_path(runner) is None:
            unwrapped(runner.model).init_weights()

    def run(self) -> dict[str, float]:
        """Give the accuracy for each k."""
        runner = self.runner
        runner.call_hook("before_test")
        runner.call_hook("before_test_epoch")
        model = unwrapped(runner.model)
        features, labels = labelled_features(model, self.neighbours)
        queries, truth = labelled_features(model, self.dataloader)
        told = nearest_classes(features, labels, queries, self.k, self.temperature)
        accuracy = 100 * (told == truth).double().mean(1)
        metrics = {f"knn/top1_k{k}": float(one) for k, one in zip(self.k, accuracy, strict=True)}
        runner.call_hook("after_test_epoch", metrics=metrics)
        runner.call_hook("after_test")
        return metrics
