"""Search for hyperparameters before a training, with Optuna: what is varied, the trials, and which of them wins.

The first trial is the recipe as it is, so the search can only match or beat it on the validation split. Everything is
kept in a journal (`trials`), and a trial's draws are a function of the seed and of the trials before it: a search that
was killed and goes on ends like one that ran through. Not covered: how a trial is trained, and on what (`tuning`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from components.core.recipes import Recipe
from components.core.storage import ObjectStore
from components.train.trials import StoreJournal

logger = logging.getLogger(__name__)

Report = Callable[[int, float], None]
Evaluate = Callable[[Recipe, Report], float]
Value = float | str

STREAM = 0x5EA2C4  # keeps the seeds of trials apart from those of `randomness`
RANDOM_TRIALS = 5  # before TPE: ends nearer the optimum of 20 trials of a quadratic than 3, or Optuna's 10
PRUNE_AFTER_TRIALS = 4  # a median of fewer says little
PRUNE_FROM_EPOCH = 2  # after the first epoch of a warm-up, accuracies tell little

RATE_SPAN = 10.0  # the learning rate is searched from a tenth of the recipe's to ten times it
LEAST_DECAY, MOST_DECAY = 1e-5, 0.1
USUAL_RATE = {"adamw": 1.0, "sgd": 30.0}  # relative to each other: see `LoopConfig.optimizer`
CHOICES: Mapping[str, tuple[Value, ...]] = {
    "optimizer": ("adamw", "sgd"),
    "label_smoothing": (0.0, 0.05, 0.1, 0.2),
    "warmup": (0.0, 0.05, 0.1, 0.2),
    "ema_decay": (0.0, 0.99, 0.999),
    "balance": ("none", "sampler", "loss", "logits"),
    "mixup": (0.0, 0.1, 0.2, 0.4),
    "cutmix": (0.0, 0.5, 1.0),
    "augmentation.shift": (0.0, 0.05, 0.1, 0.2),
    "augmentation.zoom": (0.0, 0.2, 0.5, 0.8),
}
OF_IMAGES = {"mixup", "cutmix", "augmentation.shift", "augmentation.zoom"}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One finished trial.

    Attributes:
        number: From 0, in order of time; 0 is the recipe as it was.
        values: What was varied, by field of the recipe.
        accuracy: On the validation split, in [0, 1]; where it was pruned, that of its last epoch; 0 where it diverged.
        state: Whether it ran to its end, was stopped as poor, or lost its loss to infinity.
        seconds: It took.
    """

    number: int
    values: Mapping[str, Value]
    accuracy: float
    state: Literal["complete", "pruned", "diverged"]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to: the best recipe, with nothing left to search, and all finished trials in order."""

    recipe: Recipe
    trials: tuple[Tried, ...]

    @property
    def best(self) -> Tried | None:
        """The trial with the highest accuracy of those that were not pruned, the first of equals; None without any."""
        return _best(self.trials)

    @property
    def seconds(self) -> float:
        """All finished trials took, those before a restart too."""
        return _seconds(self.trials)

    @property
    def sentence(self) -> str:
        """All of it in a line for people."""
        if self.best is None:
            return "no search: the recipe stays as it is"
        counts = {state: sum(t.state == state for t in self.trials) for state in ("pruned", "diverged")}
        values = ", ".join(f"{name} {_shown(value)}" for name, value in self.best.values.items())
        return (
            f"searched {len(self.trials)} trials ({counts['pruned']} pruned, {counts['diverged']} diverged) in "
            f"{self.seconds:.0f} s: trial {self.best.number} is best with accuracy {self.best.accuracy:.4f} "
            f"({self.trials[0].accuracy:.4f} as it was): {values}"
        )


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is varied around a recipe. Optuna sees the rate as a factor on what is usual for the optimiser: so both
    optimisers have a range of their own, and what is learnt of one holds for the other."""

    recipe: Recipe
    distributions: dict[str, BaseDistribution]

    @classmethod
    def around(cls, recipe: Recipe, *, unequal_classes: bool) -> Space:
        """The space that `recipe.search` asks for, but for what has no effect on such a recipe.

        The recipe's own values are always part of it. Flips and colours never are: whether these keep the label is
        for its owner to say.

        Args:
            recipe: The centre.
            unequal_classes: Whether balancing them is worth trying (`extensive` only).
        """
        decay = recipe.weight_decay or LEAST_DECAY
        space: dict[str, BaseDistribution] = {
            "weight_decay": FloatDistribution(min(LEAST_DECAY, decay), max(MOST_DECAY, decay), log=True)
        }
        if recipe.solver == "steps":  # L-BFGS goes to the optimum, whatever the rest says
            space["rate_factor"] = FloatDistribution(1 / RATE_SPAN, RATE_SPAN, log=True)
            if recipe.search.space == "extensive":
                left_out = OF_IMAGES if recipe.layers == "head" else set()  # features computed once have no pixels
                left_out = left_out if unequal_classes else {*left_out, "balance"}
                space |= {name: _choices(name, recipe) for name in CHOICES if name not in left_out}
        return cls(recipe=recipe, distributions=space)

    def start(self) -> dict[str, Value]:
        """The recipe's own values, as Optuna sees them. A weight decay of 0, without a logarithm, is the least."""
        own: dict[str, Value] = {"rate_factor": 1.0, "weight_decay": self.recipe.weight_decay or LEAST_DECAY}
        return {name: own[name] if name in own else _field(self.recipe, name) for name in self.distributions}

    def recipe_of(self, number: int, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial; of number 0, the recipe as it is to the last bit."""
        if number == 0:
            return self.recipe
        values = {name: value for name, value in parameters.items() if name != "rate_factor"}
        optimizers = USUAL_RATE[values.get("optimizer", self.recipe.optimizer)] / USUAL_RATE[self.recipe.optimizer]
        values["learning_rate"] = self.recipe.learning_rate * parameters.get("rate_factor", 1.0) * optimizers
        changed = self.recipe.model_dump()
        for name, value in values.items():
            *section, field = name.split(".")
            (changed[section[0]] if section else changed)[field] = value
        return Recipe.model_validate(changed)

    def values_of(self, candidate: Recipe) -> dict[str, Value]:
        """What a recipe of this space has for the fields that are varied."""
        names = ("learning_rate" if name == "rate_factor" else name for name in self.distributions)
        return {name: _field(candidate, name) for name in names}


def search(
    recipe: Recipe,
    evaluate: Evaluate,
    *,
    store: ObjectStore,
    prefix: str,
    seed: int,
    unequal_classes: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Try variations of a recipe, and return the best.

    Goes on from the trials in the journal. One that had begun there and not ended is marked as failed and begun anew:
    one search at a time on a journal, a second one would take the first one's trial away. Optuna's own messages are
    routed to the root logger, from warnings up.

    Args:
        recipe: Where to start; its `search` section says how many trials, in which space, for how long.
        evaluate: Trains the recipe it is given, on as many rows and epochs as its `search` section says, and returns
            the validation accuracy in [0, 1]. After each epoch it calls its second argument with the number of epochs
            done, from 1, and the accuracy after it, which raises `optuna.TrialPruned` where there is no point in going
            on: let it through. A FloatingPointError ends the trial with accuracy 0; any other error ends the search.
        store: Of the journal.
        prefix: Of the journal's keys: one for each recipe, seed and data.
        seed: Of everything that is drawn.
        unequal_classes: Whether balancing the classes is worth trying.
        clock: Seconds, for the time that trials take. The budget counts finished trials, those before a restart too.

    Returns:
        The best recipe, with `search.trials` at 0, and the finished trials.

    Raises:
        StoreUnreachable: The journal cannot be written or read.

    Source:
        Tree-structured Parzen estimator: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011;
        multivariate: Falkner et al., "BOHB", ICML 2018. Median stopping: Golovin et al., "Google Vizier", KDD 2017.
        Both as in Optuna (Akiba et al., KDD 2019).
    """
    space = Space.around(recipe, unequal_classes=unequal_classes)
    study = _open(StoreJournal(store, prefix))
    while _goes_on(recipe, tried := _tried(study, space)):
        _run_trial(study, space, len(tried), evaluate, seed, clock)
        logger.info("search: %s", _told(_tried(study, space)[-1], recipe.search.trials))
    best = _best(tried)
    winner = space.recipe_of(best.number, _finished(study)[best.number].params) if best else recipe
    nothing_left = recipe.search.model_copy(update={"trials": 0})
    return Found(recipe=winner.model_copy(update={"search": nothing_left}), trials=tried)


def _open(journal: StoreJournal) -> optuna.Study:
    """The study of a journal, begun where there is none; whatever was running has died with its process."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=JournalStorage(journal),
        direction="maximize",
        load_if_exists=True,
        pruner=MedianPruner(PRUNE_AFTER_TRIALS, PRUNE_FROM_EPOCH, n_min_trials=PRUNE_AFTER_TRIALS),
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        logger.info("search: a trial was interrupted; it begins anew")
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _goes_on(recipe: Recipe, tried: tuple[Tried, ...]) -> bool:
    """Whether another trial starts."""
    config = recipe.search
    return len(tried) < config.trials and (config.seconds is None or _seconds(tried) < config.seconds)


def _run_trial(
    study: optuna.Study, space: Space, number: int, evaluate: Evaluate, seed: int, clock: Callable[[], float]
) -> None:
    """Run one trial to its end and file it. `number` counts finished trials; Optuna's also counts interrupted ones."""
    trial = _ask(study, space, number, seed)
    began = clock()

    def report(epoch: int, accuracy: float) -> None:
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"accuracy {accuracy:.4f} after epoch {epoch} is below the median")

    accuracy: float | None = None
    try:
        accuracy = evaluate(space.recipe_of(number, trial.params), report)
    except optuna.TrialPruned:
        pass
    except FloatingPointError as error:
        logger.info("search: trial %d diverged: %s", number, error)
        trial.set_user_attr("diverged", True)
        accuracy = 0.0  # and not Optuna's FAIL, which the sampler would learn nothing from
    trial.set_user_attr("seconds", clock() - began)
    study.tell(trial, accuracy, state=TrialState.PRUNED if accuracy is None else TrialState.COMPLETE)


def _ask(study: optuna.Study, space: Space, number: int, seed: int) -> optuna.Trial:
    """Begin a trial. Its sampler is a new one, so that nothing depends on what this process has drawn before."""
    words = np.random.SeedSequence([seed, STREAM, number]).generate_state(1)
    study.sampler = TPESampler(seed=int(words[0]), n_startup_trials=RANDOM_TRIALS, constant_liar=False)
    if number == 0 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(space.start())
    return study.ask(space.distributions)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended by themselves, oldest first."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _tried(study: optuna.Study, space: Space) -> tuple[Tried, ...]:
    return tuple(
        Tried(
            number=number,
            values=space.values_of(space.recipe_of(number, trial.params)),
            accuracy=trial.value or 0.0,
            state=_state(trial),
            seconds=trial.user_attrs["seconds"],
        )
        for number, trial in enumerate(_finished(study))
    )


def _state(trial: FrozenTrial) -> Literal["complete", "pruned", "diverged"]:
    if trial.state == TrialState.PRUNED:
        return "pruned"
    return "diverged" if "diverged" in trial.user_attrs else "complete"


def _best(tried: tuple[Tried, ...]) -> Tried | None:
    return max((t for t in tried if t.state != "pruned"), key=lambda t: (t.accuracy, -t.number), default=None)


def _seconds(tried: tuple[Tried, ...]) -> float:
    return sum(trial.seconds for trial in tried)


def _told(trial: Tried, trials: int) -> str:
    values = ", ".join(f"{name} {_shown(value)}" for name, value in trial.values.items())
    return f"trial {trial.number} of {trials} {trial.state}, accuracy {trial.accuracy:.4f}: {values}"


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _choices(name: str, recipe: Recipe) -> CategoricalDistribution:
    own = _field(recipe, name)
    return CategoricalDistribution(CHOICES[name] if own in CHOICES[name] else (*CHOICES[name], own))


def _field(recipe: Recipe, name: str) -> Value:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, float | int | str)
    return value
