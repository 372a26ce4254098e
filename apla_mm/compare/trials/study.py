"""Which runs a comparison consists of, and which can be done next, given what is done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .search import best_rate, next_rates, start_of
from .trial import Trial

HEAD = "head"  #: the method that trains the heads alone, by which their rate is chosen

Scores = Mapping[Trial, float | None]


@dataclass(frozen=True)
class Study:
    """A comparison of methods.

    A learning rate is chosen for each method and each fraction of the training set, by equally many trials with seed 0
    on a part held out of that fraction. That of the heads is chosen first, with a frozen backbone, and is the same for
    all methods of that fraction.

    Attributes:
        methods: As on the command line.
        seeds: How many final runs each has.
        fractions: Of the training set.
        trials: How many rates are tried for each.
        starts: Rates that a method's search begins with, where they are others than :func:`~.search.start_of` gives;
            one alone is that method's rate, without a search.
        head_lr: The heads' rate; None to choose it.
    """

    methods: tuple[str, ...]
    seeds: int = 3
    fractions: tuple[float, ...] = (1.0,)
    trials: int = 5
    starts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    head_lr: float | None = None

    def next_trials(self, scores: Scores) -> list[Trial]:
        """Trials that can be run now, and have not been.

        Args:
            scores: Of the trials that were run; None for those that failed.
        """
        return [trial for f in self.fractions for trial in self._next(scores, f) if trial not in scores]

    def rates_of(self, scores: Scores, method: str, fraction: float) -> dict[float, float | None]:
        """What was tried for a method: learning rate (of the heads, for ``head``) to score."""
        searched = {t: s for t, s in scores.items() if (t.kind, t.method, t.fraction) == ("search", method, fraction)}
        if method == HEAD:
            return {trial.head_lr: score for trial, score in searched.items()}
        head_lr = self.head_rate(scores, fraction)
        return {t.lr: score for t, score in searched.items() if t.lr is not None and t.head_lr == head_lr}

    def head_rate(self, scores: Scores, fraction: float) -> float | None:
        """The heads' learning rate; None while it is not chosen."""
        if self.head_lr is not None:
            return self.head_lr
        return self._chosen(scores, HEAD, fraction)

    def rate(self, scores: Scores, method: str, fraction: float) -> float | None:
        """A method's learning rate (of the heads, for ``head``); None while it is not chosen."""
        if method == HEAD:
            return self.head_rate(scores, fraction)
        return self._chosen(scores, method, fraction)

    def finals(self, scores: Scores, method: str, fraction: float) -> list[Trial]:
        """The final runs of a method, once its rates are chosen."""
        head_lr, lr = self.head_rate(scores, fraction), self.rate(scores, method, fraction)
        if head_lr is None or lr is None:
            return []
        return [
            Trial("final", method, fraction, seed, None if method == HEAD else lr, head_lr)
            for seed in range(self.seeds)
        ]

    def check_even(self, scores: Scores) -> None:
        """Check that each method's rate is chosen by no more trials than this study gives to all.

        Raises:
            ValueError: One had more, or would have, by rates to begin with that are new.
        """
        for fraction in self.fractions:
            searched = [method for method in self.methods if method != HEAD]
            for method in searched if self.head_lr is not None else [HEAD, *searched]:
                start = self._start(method)
                tried = self.rates_of(scores, method, fraction)
                planned = len(tried.keys() | set(start)) if len(start) > 1 else 0
                if planned > self.trials:
                    raise ValueError(
                        f"{method}, fraction {fraction:g}: {len(tried)} learning rates were tried, and with those to "
                        f"begin with they would be {planned}, more than the {self.trials} trials of the others: give "
                        f"--trials {planned}, the same --rates as before, or another --work-dir"
                    )

    def count(self) -> int:
        """How many trials there are in all, if none fails so that none is left to choose."""
        searched = [m for m in self.methods if m != HEAD] + ([HEAD] if self.head_lr is None else [])
        searched = [m for m in searched if len(self._start(m)) > 1]
        return len(self.fractions) * (len(searched) * self.trials + len(self.methods) * self.seeds)

    def _chosen(self, scores: Scores, method: str, fraction: float) -> float | None:
        start = self._start(method)
        if len(start) == 1:
            return start[0]
        rates = self.rates_of(scores, method, fraction)
        return None if next_rates(rates, start, self.trials) else best_rate(rates)

    def _next(self, scores: Scores, fraction: float) -> Iterator[Trial]:
        head_lr = self.head_rate(scores, fraction)
        if head_lr is None:
            rates = self.rates_of(scores, HEAD, fraction)
            for rate in next_rates(rates, self._start(HEAD), self.trials):
                yield Trial("search", HEAD, fraction, 0, None, rate)
            return
        for method in self.methods:
            if method != HEAD:
                rates = self.rates_of(scores, method, fraction)
                for rate in next_rates(rates, self._start(method), self.trials):
                    yield Trial("search", method, fraction, 0, rate, head_lr)
            yield from self.finals(scores, method, fraction)

    def _start(self, method: str) -> Sequence[float]:
        return self.starts.get(method) or start_of(method)
