"""Recipes: what a training strategy is made of, and the ones that come with the product.

A recipe says what the challenger starts from, which rows it sees, which layers move, what holds it to the champion and
how the steps are taken. All of it combines. Not covered: what the parts do (`train.strategies`), and which recipe a
window gets (`decide`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.core.sections import Fraction, Name, Section

StrategyName = Name
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Augmentation(Section):
    """Random changes of each training image, on the device of the model; each image gets its own. All off by default:
    whether a mirrored image keeps its label is for the owner of the labels to say."""

    shift: Fraction = 0.0
    """Furthest shift along each axis, as a share of the side; what comes in from outside repeats the border."""
    flip: bool = False
    """Mirror left and right, every second image. Not for text, digits, road signs."""
    zoom: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Crop to a random share of the area, at least 1 - zoom, of a random shape (3:4 to 4:3), then resize: 0.92 is the
    usual for photographs (Szegedy et al. 2015)."""
    brightness: Fraction = 0.0
    """Largest change of brightness, as a share of it."""
    contrast: Fraction = 0.0
    """Largest change of contrast, as a share of it."""
    erase: Fraction = 0.0
    """Side of a square that is greyed out, as a share of the image's (Cutout, DeVries & Taylor 2017)."""

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self != Augmentation()


class SearchConfig(Section):
    """Search for hyperparameters before the training, with Optuna, on a validation split of the training rows."""

    trials: Annotated[int, Field(ge=0)] = 0
    """Trials; 0: no search, the recipe is used as it is."""
    space: Literal["light", "extensive"] = "light"
    """light: learning rate and weight decay. extensive: also the optimiser, smoothing, mixing, augmentation."""
    seconds: Positive | None = None
    """No trial starts after this long; None: all trials. The search goes on where it was when a pod is lost."""
    rows: Annotated[int, Field(ge=2)] = 20_000
    """Training rows of a trial, at most."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs of a trial, at most; poor trials are stopped earlier (median of the others)."""


class MetaConfig(Section):
    """Learn an initialisation that adapts from few images, by episodes of the old classes."""

    algorithm: Literal["maml", "first-order", "reptile", "anil"] = "anil"
    """maml (Finn et al. 2017), its first-order form, reptile (Nichol et al. 2018), or anil (Raghu et al. 2020): only
    the head adapts inside an episode, the cheapest with second derivatives."""
    ways: Annotated[int, Field(ge=2)] = 5
    """Classes of an episode."""
    shots: Annotated[int, Field(ge=1)] = 5
    """Images of each class to adapt to."""
    queries: Annotated[int, Field(ge=1)] = 10
    """Images of each class to be judged by."""
    inner_steps: Annotated[int, Field(ge=1)] = 5
    """Gradient steps of an adaptation."""
    inner_learning_rate: Positive = 0.02
    """Rate of these steps (plain gradient descent)."""
    meta_learning_rate: Positive = 3e-4
    """Rate at which the initialisation moves (Adam)."""
    meta_batch: Annotated[int, Field(ge=1)] = 4
    """Episodes a step."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Steps of the initialisation."""
    turned: bool = True
    """Let a class turned by 90, 180 or 270 degrees be another class (Santoro et al. 2016): with few classes, the
    episodes would only teach to tell these apart."""


class LoopConfig(Section):
    """How the steps are taken."""

    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training rows."""
    learning_rate: Positive
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay (of the L-BFGS solver: the L2 penalty on the head)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum of 0.9, which wants a rate about 30 times higher."""
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    """How the rate falls after the warm-up: half a cosine to zero, by a constant factor to a hundredth, not at all."""
    warmup: Fraction = 0.05
    """Share of the steps over which the rate rises from nothing."""
    clip_norm: Positive | None = None
    """Largest norm of a step's gradient; longer ones are cut to it."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches of `training.batch_size` that make one step: the effective batch is their product."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2016)."""
    mixup: NonNegative = 0.0
    """Mix pairs of images and labels, alpha of the Beta distribution (Zhang et al. 2018); 0: off, 0.2 is usual."""
    cutmix: NonNegative = 0.0
    """Paste a rectangle of one image into another, alpha (Yun et al. 2019); 0: off, 1.0 is usual. With mixup: half of
    the batches each."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the images."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Keep a moving average of the weights and use that (Polyak & Juditsky 1992); 0: off, 0.999 is usual."""
    balance: Literal["none", "sampler", "loss", "logits"] = "none"
    """Against rare classes: draw every class equally often; weigh the loss by the effective number of images (Cui et
    al. 2019); or add the logarithm of the class shares to the logits while training (Menon et al. 2021)."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training rows set aside to choose the best epoch by; never rows of a holdout. 0: the last epoch."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Epochs without a better validation accuracy after which training stops; None: it goes on to the end."""

    @model_validator(mode="after")
    def _something_to_watch(self) -> LoopConfig:
        if self.patience is not None and not self.validation_fraction:
            raise ValueError("patience needs a validation_fraction above 0")
        return self


class Recipe(LoopConfig):
    """One way of making a challenger."""

    start: Literal["champion", "shrunk", "meta", "fresh"] = "champion"
    """The champion's weights; the same shrunk and perturbed; an initialisation learnt from episodes of the old classes
    (`meta`); or fresh ones (pretrained where `training.pretrained` names some)."""
    shrink: Fraction = 0.4
    """Share of the champion's weights that is kept by `start: shrunk` (Ash & Adams 2020)."""
    perturb: Fraction = 0.1
    """Share of freshly drawn weights that is added by `start: shrunk`."""
    rows: Literal["new", "replay", "all"] = "replay"
    """Which rows train: the window's, these and a replay of the champion's exemplars, or all windows'."""
    replay_fraction: Fraction = 0.3
    """Rows replayed, as a share of the champion's training rows; balanced over classes."""
    layers: Annotated[str, Field(min_length=1)] = "all"
    """What moves: `all`, `head` (on features computed once), `last` (the last stage and the head), or the name of the
    first stage that moves, such as `layer3` of a ResNet."""
    solver: Literal["steps", "lbfgs"] = "steps"
    """With `layers: head`: gradient steps, or L-BFGS to the optimum (logistic regression)."""
    batch_norm: Literal["adapt", "keep"] = "adapt"
    """Whether batch norm takes its statistics from the new rows, or keeps the champion's."""
    l1_sp: NonNegative = 0.0
    """Strength of the L1 pull toward the champion's weights (Li et al. 2018)."""
    l2_sp: NonNegative = 0.0
    """Strength of the L2 pull toward the champion's weights (Li et al. 2018)."""
    ewc: NonNegative = 0.0
    """Strength of the pull weighted by the Fisher information (Kirkpatrick et al. 2017); that of a good champion is
    small, so 1,000 to 100,000 are usual."""
    lwf: NonNegative = 0.0
    """Weight of staying with the champion's answers on the same images, where they are right (Li & Hoiem 2016)."""
    lwf_temperature: Positive = 2.0
    """Softens these answers; 2 as in the paper."""
    keep_champion: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the champion's weights mixed into the result (WiSE-FT, Wortsman et al. 2022); 0: off, 0.5 is usual."""
    resolution: Literal["direct", "progressive"] = "direct"
    """Where `training.image_size` is not the champion's: train at the new size at once, or grow up to it during the
    first half of the epochs (fresh weights start from half the size)."""
    search: SearchConfig = SearchConfig()
    """Search for better hyperparameters first."""
    meta: MetaConfig = MetaConfig()
    """Of `start: meta`."""

    @model_validator(mode="after")
    def _parts_that_fit(self) -> Recipe:
        held = [name for name in ("l1_sp", "l2_sp", "ewc", "lwf", "keep_champion") if getattr(self, name)]
        if self.start == "fresh" and held:
            raise ValueError(f"{held[0]} needs the champion's weights: start cannot be fresh")
        if self.layers == "head" and self.start in ("fresh", "shrunk"):
            raise ValueError(f"layers: head needs a body that is trained already: start cannot be {self.start}")
        if self.solver == "lbfgs" and self.layers != "head":
            raise ValueError("solver: lbfgs is for layers: head")
        if self.solver == "lbfgs" and (held or self.label_smoothing or self.balance in ("sampler", "logits")):
            raise ValueError("solver: lbfgs knows weight_decay and balance: loss only")
        if self.start == "fresh" and self.batch_norm == "keep":
            raise ValueError("batch_norm: keep needs statistics to keep: start cannot be fresh")
        if self.layers == "head" and (self.augmentation.active or self.mixup or self.cutmix):
            raise ValueError("layers: head works on features computed once: there are no images to change or mix")
        return self


RECIPES: Mapping[str, Recipe] = {
    "logistic": Recipe(layers="head", solver="lbfgs", epochs=200, learning_rate=1.0, weight_decay=1e-3),
    "head-only": Recipe(layers="head", epochs=60, learning_rate=5e-3),
    "partial": Recipe(layers="last", batch_norm="keep", epochs=10, learning_rate=5e-4),
    "fine-tune": Recipe(epochs=10, learning_rate=5e-4),
    "distil": Recipe(epochs=10, learning_rate=5e-4, lwf=1.0),
    "rehearsal": Recipe(replay_fraction=0.5, epochs=10, learning_rate=3e-3),
    "wise-ft": Recipe(epochs=10, learning_rate=5e-4, keep_champion=0.5),
    "l2-sp": Recipe(rows="new", epochs=10, learning_rate=5e-4, l2_sp=0.1),
    "ewc": Recipe(rows="new", epochs=10, learning_rate=5e-4, ewc=1e4),
    "lwf": Recipe(rows="new", epochs=10, learning_rate=5e-4, lwf=1.0),
    "few-shot": Recipe(start="meta", epochs=10, learning_rate=5e-4),
    "warm-retrain": Recipe(start="shrunk", rows="all", epochs=20, learning_rate=3e-3),
    "retrain": Recipe(start="fresh", rows="all", epochs=30, learning_rate=3e-3),
}
