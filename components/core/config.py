"""The configuration file: one section a step, every knob with its meaning, unit and the reason for its default.

Covers parsing and checking. Not covered: parameters of one run (source, strategy, GPU), which are pipeline parameters.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from components.core.errors import ConfigurationError
from components.core.recipes import RECIPES, Recipe, StrategyName
from components.core.sections import Fraction, Name, Section

PLAN = "plan:"
MAX_RUNGS = 3  # how many attempts the compiled graph has room for
ExpectationName = Literal[
    "schema",
    "labels",
    "enough images",
    "readable",
    "no duplicate flood",
    "one label an image",
    "large enough",
    "not oversized",
    "allowed modes",
    "both sides of the split",
    "enough of each class",
    "balanced",
    "few near duplicates",
    "no leakage",
    "few repeats",
    "known classes",
    "no class missing",
]
SliceColumn = Literal[
    "group",
    "bytes",
    "width",
    "height",
    "channels",
    "mode",
    "format",
    "quality",
    "mean",
    "std",
    "sharpness",
    "red",
    "green",
    "blue",
    "red_std",
    "green_std",
    "blue_std",
    "skew",
    "black",
    "peak",
    "midtones",
    "flat_tail",
    "doubled",
    "blockiness",
]


class StoreConfig(Section):
    """Where windows, model versions, the ledger and run records live."""

    uri: Annotated[str, Field(min_length=1)]
    """A directory (relative to this file) or `s3://bucket/prefix`."""
    endpoint_url: str | None = None
    """Address of an S3-compatible server; none means AWS. Credentials come from boto3's default chain."""
    region: str | None = None
    """Region to sign with; none means boto3's default chain."""
    path_style: bool = True
    """Bucket in the path instead of the host name: what most S3-compatible servers need."""
    checksums: Literal["when_supported", "when_required"] = "when_required"
    """boto3's checksum trailers; `when_supported` breaks uploads over TLS on some servers (Ceph 16 answers 411)."""
    connect_timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How long to wait for a connection."""
    read_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long to wait for an answer; must outlast one 32 MiB part on your network."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Tries a request gets, the first included."""
    cache: str | None = None
    """Local folder (relative to this file) for decoded images and half-done ingests; may be lost at any time. None:
    `retrain` in XDG_CACHE_HOME, else in ~/.cache."""
    cache_bytes: Annotated[int, Field(ge=0)] = 50 * 2**30
    """Decoded images kept in the cache, one byte a pixel and channel; beyond it the least recently used go. One step's
    images must fit."""

    @property
    def cache_folder(self) -> Path:
        """Where the cache is on this machine."""
        return (
            Path(self.cache)
            if self.cache
            else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "retrain"
        )


class IngestConfig(Section):
    """Delivered images -> immutable window."""

    holdout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of images (by content hash) that never train. Changing it moves images between the sides: set it once."""
    group_pattern: str | None = None
    """Regular expression on the path below the source; its first group names the clip, device or upload that makes
    images dependent. Whole groups go to one side of the split."""
    path_column: str = "path"
    """Column of a CSV or Parquet table that names the image: a path relative to the table's folder."""
    label_column: str = "label"
    """Column of a table, or key of a WebDataset sample's .json, that holds the label. Empty: not labelled yet."""
    group_column: str | None = None
    """Column of a table, or key of a WebDataset sample's .json, that holds the group; none: `group_pattern` on the
    path."""
    image_column: str = "image"
    """Column of a Parquet file that holds the images themselves, as Hugging Face writes them."""
    ignore: tuple[str, ...] = (".*", "Thumbs.db", "desktop.ini", "__MACOSX")
    """File and folder names (glob patterns) to pass over."""
    max_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Images with more pixels count as unreadable: a guard against decompression bombs."""
    max_image_bytes: Annotated[int, Field(gt=0)] = 256 * 2**20
    """A larger file is refused before it is read: it is no image, and would not fit the memory of a worker."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that read and decode; none: one a core that this process may use, at most 16."""
    shard_bytes: Annotated[int, Field(gt=0)] = 128 * 2**20
    """Size at which a tar shard is closed. 128 MiB keeps object counts low and parts parallel."""


class ValidationConfig(Section):
    """Checks on the manifest, before anything is computed from pixels."""

    max_unreadable_fraction: Fraction = 0.02
    """More files than this that do not decode: the delivery is broken, quarantine."""
    max_duplicate_fraction: Fraction = 0.5
    """More exact duplicates than this: a flood, quarantine."""
    max_conflicting_fraction: Fraction = 0.01
    """More images than this delivered under two labels: quarantine. Such images never train."""
    max_unlabelled_fraction: Fraction = 0.0
    """More images than this without a label are a warning: labels arrive late, which is no fault of the images. Never
    a quarantine: where too few have one, the run asks for labels (`min_images`). Raise it if your labels are always
    behind."""
    min_images: Annotated[int, Field(ge=1)] = 50
    """A window with fewer usable images (readable, not set aside) cannot be judged: quarantine. Nor is anything learnt
    from fewer with a label: where more could get one, the run asks for labels, if it finds a reason to."""
    min_images_per_class: Annotated[int, Field(ge=1)] = 5
    """A class with fewer images is a warning in the report."""
    max_imbalance: Annotated[float, Field(ge=1.0)] = 100.0
    """Images of the largest class per image of the smallest, among usable ones; more is a warning. Natural imbalance
    of 100 is common (long-tailed benchmarks stop there); beyond it, the smallest class is hardly seen in an epoch."""
    severities: dict[ExpectationName, Literal["reject", "warn"]] = Field(default_factory=dict)
    """Severity of an expectation by its name, such as `no leakage: reject`, where it is to be another than the usual:
    reject quarantines the window, warn is told in the report."""
    min_side_pixels: Annotated[int, Field(ge=1)] = 8
    """Shortest side an image may have."""
    max_undersized_fraction: Fraction = 0.02
    """More images than this with a shorter side: quarantine."""
    max_side_pixels: Annotated[int, Field(ge=1)] = 10_000
    """A longer side on any image is a warning: no camera's photograph, but a scan, a panorama or a stitched sheet."""
    allowed_modes: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B"),
    )
    """Pixel modes, by Pillow's names, that a delivery may have. All that the reader converts; name fewer (`[L]` for
    X-rays) and a delivery of something else is caught."""
    max_disallowed_mode_fraction: Fraction = 0.02
    """More images than this in another mode: quarantine."""
    max_repeated_fraction: Fraction = 0.5
    """More images than this that the champion's windows hold already are a warning. Never a quarantine: they are left
    out of training, and a folder that only grows delivers them every time."""
    max_near_duplicate_fraction: Fraction = 0.2
    """More images than this that nearly equal another one, here or in the champion's windows, are a warning: bursts and
    frames of one clip make scores look surer than they are. `ingest.group_pattern` keeps them on one side."""


class DriftConfig(Section):
    """Two-sample tests of the window against the champion's reference sample, and triage of broken data."""

    windows_per_year: Annotated[float, Field(gt=0.0, le=100_000.0)] = 52.0
    """How often windows arrive. 365 for one a day."""
    alarms_per_year: Annotated[float, Field(ge=0.001)] = 1.0
    """False alarms of the drift test that are acceptable in a year in which nothing changes. Each window is tested at
    the level that keeps this budget: 52 looks at the usual 5 % cry wolf in nine of ten such years."""
    alarm_windows: Annotated[int, Field(ge=1, le=100)] = 1
    """Windows that must look changed, of the last `alarm_memory`, before there is an alarm. More need a lasting change,
    and let each window be tested less strictly within the same budget."""
    alarm_memory: Annotated[int, Field(ge=1, le=100)] = 1
    """Windows that are looked back on for an alarm, the latest included."""
    rehearsal_images: Annotated[int, Field(ge=0)] = 1000
    """Held-out images that each new version is shown changed in 70 known ways (darker, blurred, turned, ...), so that
    the cost of a change can be estimated without labels, and named. Below 50: no rehearsal, no estimate. It takes as
    long as a training epoch over 25 times as many images: lower it where there is no GPU."""
    seed: int = 0
    """Seed of the relabellings: the same window gives the same report."""
    fault_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Share of the images, beyond that of the reference, that must show the sign of a broken camera or pipeline before
    the window is quarantined. Honest changes reached 0.05 of a sign, faults in every second image 0.12 and more."""
    label_fault_gain: Fraction = 0.5
    """Share of the images of some classes that exchanging the names of these classes would make right, before the label
    map is called broken. 0.5: more than half of them, so that a class that is merely hard is not."""
    label_noise_drop: Fraction = 0.05
    """Accuracy lost, with the champion as sure as ever of answers that contradict the labels, before these are called
    wrong. Two classes of ten that are exchanged in every second image lose 0.1; nothing changed loses 0.02."""
    label_contradictions: Fraction = 0.35
    """Share of labels contradicted with certainty from which they are called wrong even where the images changed too.
    Clothes turned on their side reach 0.28, shuffled labels 0.44."""

    @model_validator(mode="after")
    def _memory_for_all(self) -> DriftConfig:
        if self.alarm_memory < self.alarm_windows:
            raise ValueError(f"alarm_memory {self.alarm_memory} cannot hold alarm_windows {self.alarm_windows}")
        return self


class DecisionConfig(Section):
    """Skip, quarantine, fine-tune or retrain."""

    ladder: Annotated[tuple[StrategyName, ...], Field(min_length=1, max_length=MAX_RUNGS)] = ("rehearsal", "retrain")
    """Strategies in the order they are tried; the gate climbs when a rung does not pass."""

    @field_validator("ladder", "candidates")
    @classmethod
    def _each_rung_once(cls, ladder: tuple[StrategyName, ...]) -> tuple[StrategyName, ...]:
        if len(set(ladder)) < len(ladder):
            raise ValueError("each strategy once")
        return ladder

    candidates: Annotated[tuple[StrategyName, ...], Field(min_length=1)] = ("rehearsal", "warm-retrain", "retrain")
    """Strategies that are weighed for the first attempt; the ladder goes on from there."""
    mode: Literal["managed", "manual"] = "managed"
    """managed: what the gate passes is promoted. manual: it waits for `retrain approve RUN`."""
    train_at_drop: Fraction = 0.03
    """Accuracy drop on the new window from which training is weighed at all; chance must not explain it."""
    train_at_volume: Annotated[float, Field(gt=0)] = 1.0
    """New images per old image from which training follows even without a drop."""
    retrain_worth: Annotated[float, Field(ge=0)] = 1.3
    """Points of accuracy that a full retrain must bring to be worth its compute; half the compute, half the points."""
    point_worth: Annotated[float, Field(gt=0)] | None = None
    """What a point of accuracy is worth, in `currency`: compute that has a price (`prices`) is then weighed by that
    instead of by its share of a full retrain."""
    max_forgotten: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Accuracy lost since the last full retrain, on the holdout of the windows before, from which all is retrained,
    unless chance explains it, or that was tried in vain since."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest training that the policy may choose, in seconds; None: no limit. Not of what a person asks for."""
    max_money: Annotated[float, Field(ge=0)] | None = None
    """Most that a training may cost that the policy chooses, by `prices`; None: no limit."""
    prices: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Price of an hour of one GPU, by the model that trainings report (`NVIDIA H100 80GB HBM3`), or of the `CPU`."""
    currency: str = "EUR"
    """Of `prices`; only printed."""
    history_runs: Annotated[int, Field(ge=0)] = 20
    """Runs back that gains and costs are learnt from; 0: none."""
    min_new_class_images: Annotated[int, Field(ge=2)] = 20
    """Images a class that the champion does not know needs before the head grows."""
    max_to_label: Annotated[int, Field(ge=1)] = 500
    """Most images that a run asks labels for (`runs/RUN/to_label.csv`). It asks for no more than it needs to go on:
    `validation.min_images`, and enough held out for `gate.min_accuracy` to be shown."""


# Settings that change how a training runs and not what comes out: with another value it still is the same training.
HOW_IT_RUNS = {
    *("strategies", "cpu_threads", "checkpoint_seconds", "max_preemptions", "max_errors"),
    *("launcher", "nodes", "trainjob_runtime"),
}


class TrainingConfig(Section):
    """The model, the machine, and what each strategy does."""

    architecture: str = "resnet18"
    """`small-cnn` (80,000 weights, for images up to 64 pixels) or any classification network of torchvision."""
    pretrained: str | None = None
    """Where a fresh network gets its first weights: a name of torchvision's for this architecture (`DEFAULT`,
    `IMAGENET1K_V1`), a version in the store (`models/<model>/versions/<version>`), or a `.safetensors` key there."""
    image_size: Annotated[int, Field(ge=8)] = 224
    """Side to which images are resized, in pixels. When it changes, the next challenger has the new size."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Rows that go through the network at once, on all GPUs together. Batch norm needs two."""
    seed: int = 0
    """Seed of initialisation, batch order, augmentation and exemplars."""
    cpu_threads: Annotated[int, Field(ge=1)] | None = None
    """Threads for training on a CPU; none leaves it to torch (one a core). Small networks on a shared machine are
    faster with 1: threads that wait for each other lose more than they share."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products in the network; weights stay float32. auto: bfloat16 on a GPU that multiplies it faster."""
    compile: bool = False
    """Let torch.compile fuse the network: up to a third faster on a GPU, after a minute or two."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time; slower on a GPU, always so on a CPU."""
    exemplars: Annotated[int, Field(ge=0)] = 20_000
    """Rows that a version remembers to be replayed later, balanced over classes. The images stay in their windows."""
    exemplar_choice: Literal["reservoir", "herding"] = "reservoir"
    """reservoir: a uniform sample of everything seen (Vitter 1985); herding: those whose mean feature is closest to
    the class's (Rebuffi et al. 2017)."""
    fisher_rows: Annotated[int, Field(ge=1)] = 256
    """Rows from which the Fisher information of `ewc` is computed, one gradient each; a few hundred are enough."""
    fisher_decay: Fraction = 0.9
    """What is left of the Fisher information of earlier windows at each new one (Schwarz et al. 2018)."""
    checkpoint_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    """Time between checkpoints: the most that a lost pod loses."""
    max_preemptions: Annotated[int, Field(ge=0)] = 100
    """How often a training may be cut off (pod lost, SIGTERM) and go on from its checkpoint."""
    max_errors: Annotated[int, Field(ge=0)] = 2
    """How often it may end in an error and be tried again from its checkpoint, before it has to start afresh."""
    launcher: Literal["pod", "trainjob"] = "pod"
    """Where the training runs: in the step's own pod on all its GPUs, or as a TrainJob of Kubeflow Trainer."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Pods of a TrainJob."""
    trainjob_runtime: str = "torch-distributed"
    """ClusterTrainingRuntime of a TrainJob."""
    strategies: dict[StrategyName, Recipe] = Field(default_factory=lambda: dict(RECIPES))
    """Recipes by name. What is written here changes the one of that name that comes with the product, or adds one."""

    @field_validator("strategies", mode="before")
    @classmethod
    def _on_top_of_ours(cls, given: object) -> object:
        """Keys that are given replace those of the recipe that comes with the product; the others stay."""
        if not isinstance(given, dict):
            return given
        ours: dict[str, object] = {name: recipe.model_dump() for name, recipe in RECIPES.items()}
        return {**ours, **{name: _merge(ours.get(name, {}), changes) for name, changes in given.items()}}

    @property
    def what_it_makes(self) -> dict[str, object]:
        """All that a challenger depends on beside its own recipe; `head-only` fits the rows of new classes."""
        head = self.strategies["head-only"].model_dump(mode="json")
        return {**self.model_dump(mode="json", exclude=HOW_IT_RUNS), "head": head}

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of the architecture that strategies name to train from."""
        named = (recipe.layers for recipe in self.strategies.values())
        return tuple(dict.fromkeys(layers for layers in named if layers not in ("all", "head", "last")))

    @model_validator(mode="after")
    def _several_nodes_are_a_trainjob(self) -> TrainingConfig:
        if self.nodes > 1 and self.launcher != "trainjob":
            raise ValueError(f"nodes: {self.nodes} needs launcher: trainjob")
        return self


def _merge(ours: object, changes: object) -> object:
    if isinstance(changes, Section):
        return changes
    if not (isinstance(ours, dict) and isinstance(changes, dict)):
        return changes
    return {**ours, **{key: _merge(ours.get(key), value) for key, value in changes.items()}}


class EvaluationConfig(Section):
    """Champion and challenger on the same rows."""

    batch_size: Annotated[int, Field(ge=1)] = 256
    """Rows of one forward pass."""
    slices: tuple[SliceColumn, ...] = ()
    """Columns of the manifest by which both models are compared too, beside class, window, resolution and brightness.
    Columns of numbers are cut into quarters of the rows."""
    min_slice_rows: Annotated[int, Field(ge=1)] = 20
    """A slice with fewer rows is left out. One row of 20 is five points of accuracy: less tells nothing."""
    latency_repeats: Annotated[int, Field(ge=0)] = 50
    """Single images that are timed with each model; 0: not measured. The 0.99 quantile of 50 is about the slowest."""


class GateConfig(Section):
    """What a challenger must show before it is promoted: nothing may have got worse by more than a margin, for certain,
    and nothing may have been harmed beyond its guard's limit, for all that is known."""

    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Chance that a window ends in the promotion of a model that is worse than a margin, over all that is tried on it:
    attempts of a run, and runs on one window, share it. So do all runs until the next training from scratch, for the
    chance that one of them exceeds the forgetting budget."""
    old_margin: Fraction = 0.01
    """Accuracy the challenger may lose on the old holdout. README has a table of the rows that a margin needs."""
    new_margin: Fraction = 0.01
    """Accuracy the challenger may lose on the new holdout, over the classes that the champion knows."""
    min_accuracy: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    """Accuracy the challenger must reach on the new holdout (lower bound), whatever the champion does; new classes
    count. 0: it must only have been measured."""
    min_new_class_recall: Fraction = 0.5
    """Recall the challenger must reach on classes that the champion does not know: in their mean, as measured, and no
    class may miss it for certain."""
    forgetting_budget: Fraction | None = None
    """Accuracy that promotions together may lose against the last version trained from scratch, on the holdout of its
    windows: small losses within the margins add up. None: twice old_margin, which the same rows can tell; 1: not
    checked."""
    class_margin: Fraction = 0.05
    """Accuracy a class may lose, on either holdout, before the loss of it turns the challenger down. Only a certain
    loss does (one-sided test at alpha, corrected for the number of classes)."""
    max_calibration_loss: Fraction | None = 0.05
    """How much larger the challenger's expected calibration error may be than the champion's, on the new holdout; only
    a certain excess turns it down. Beyond 5 points, thresholds set on the champion's confidence, and drops estimated
    from it, are off by more than the estimate's own error (3.4 points). None: not checked."""
    max_latency_ratio: Annotated[float, Field(gt=0)] | None = None
    """Seconds an image may take, as a multiple of the champion's; only a certain excess turns the challenger down
    (lower bound of the median over evaluation.latency_repeats turns). None: not checked, the evaluation shows them."""
    max_size_ratio: Annotated[float, Field(gt=0)] | None = None
    """Bytes of the weights, as a multiple of the champion's. None: not checked, the evaluation shows them."""

    @property
    def budget(self) -> float:
        """What `forgetting_budget` comes to, in [0, 1]."""
        return min(1.0, 2 * self.old_margin) if self.forgetting_budget is None else self.forgetting_budget


class PromotionConfig(Section):
    """How a challenger that passed the gate becomes the champion, and what is filed as evidence of it, beside weights,
    evaluation, verdict, plan and card."""

    max_tries: Annotated[int, Field(ge=1, le=10)] = 3
    """Tries to enter the ledger, the first included. Where another run promotes first, the challenger is evaluated and
    gated against that new champion before the next try; after the last one it is held. Each costs an evaluation, and
    is judged more strictly than the one before."""
    exports: tuple[Literal["onnx", "torch.export"], ...] = ("onnx", "torch.export")
    """Graphs of the model, normalisation included, that servers load without this package. Each is compared with torch
    on held-out images before it is accepted. Half a minute each at most for usual networks; []: none."""
    signing_key: str | None = None
    """PEM file (relative to this file) with an EC private key, as the pod that promotes sees it: signs all files of
    version and evidence in the OpenSSF model-signing format. None: unsigned, and the card says so."""
    license: str | None = None
    """SPDX identifier of the model's licence, for the card."""
    intended_use: str | None = None
    """What the model is for and what not, for the card."""


class EventsConfig(Section):
    """Whom to tell of promotions, rejections and rollbacks."""

    webhook: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = None
    """URL that gets each as a CloudEvent (structured JSON), signed as in the Standard Webhooks specification with the
    secret in RETRAIN_WEBHOOK_SECRET. A receiver that fails is logged and never fails a run."""
    mlflow: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = None
    """Address of an MLflow tracking server whose model registry mirrors the champions: a version each, with the alias
    `champion` on the present one. Credentials from MLFLOW_TRACKING_TOKEN (on a cluster, of the secret
    `retrain-webhook`), or MLFLOW_TRACKING_USERNAME and _PASSWORD. One that fails is logged and never fails a run."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 15.0
    """How long telling one receiver may take, all tries together."""


class ReportConfig(Section):
    """Where the outcome is told."""

    pushgateway: str | None = None
    """Address of a Prometheus Pushgateway; a push that fails is logged and never fails the run."""
    push_timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How long a push may take."""
    example_images: Annotated[int, Field(ge=0, le=50)] = 8
    """Images a class shown in the page, from the champion's windows and from the new one."""


class RetentionConfig(Section):
    """What `retrain gc` keeps. Windows, run records and the ledger always stay."""

    champions: Annotated[int, Field(ge=2)] = 5
    """Champions that stay, the last ones, each with its ancestors down to the last full retrain: what can be rolled
    back to. Two at least: there is always a way back."""
    grace_days: Annotated[float, Field(ge=1)] = 14.0
    """Nothing goes that was written to within so many days. Longer than the longest run, whose steps may take a day
    each, three attempts and the wait for a GPU included."""


class TriggerConfig(Section):
    """Newly delivered images -> exactly one run (`retrain watch`, `retrain submit`)."""

    source: Annotated[str, Field(min_length=2)] | None = None
    """Where deliveries arrive: a directory (relative to this file) or `s3://bucket/prefix`, with the store's endpoint
    and credentials. Each folder right below it is a delivery, and so is each .csv, .parquet or .tar file. A name counts
    once: what is put into a delivery after it was taken is not seen."""
    marker: Annotated[str, Field(pattern=r"^[^/]+$")] = "_SUCCESS"
    """Name of the file that is uploaded last, into the delivery's folder, and says that it is complete."""
    quiet_minutes: Annotated[float, Field(gt=0)] | None = 30.0
    """A delivery without the marker counts as complete when it has not changed for so long, as the trigger saw it.
    Longer than the longest pause of an upload: images that come later are missed. None: only the marker counts."""
    min_images: Annotated[int, Field(ge=1)] = 1
    """Images to wait for before a run starts; what has arrived by then goes into one window. Tables and archives are
    not looked into: they count as enough."""
    max_wait_minutes: Annotated[float, Field(ge=0)] = 60.0
    """A complete delivery waits no longer for others. Behind a run of the same model it does, and while runs pause."""
    cool_down_minutes: Annotated[float, Field(ge=0)] = 0.0
    """Time between the end of a run and the start of the next one; what arrives meanwhile goes into one window."""
    max_failures: Annotated[int, Field(ge=1)] = 3
    """Runs that fail one after the other (crashed, terminated, timed out, lost) before no more are started for a while.
    A failed run is started again until then: it goes on from its checkpoint."""
    pause_minutes: Annotated[float, Field(gt=0)] = 60.0
    """How long that pause is; then one run is tried. It doubles with each further failure, up to a day."""
    poll_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How often the source and the run are looked at. Events only make it sooner."""
    lease_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long a trigger may take to start the run of its claim before another one does. Only patience: a run too many
    stops by itself."""
    launcher: Literal["local", "kubeflow"] = "local"
    """What runs are started with: on this machine, or through the Kubeflow Pipelines API (section `kubeflow`)."""
    listen: Annotated[str, Field(pattern=r"^[^:]*:\d+$")] | None = None
    """ADDRESS:PORT for /healthz, /readyz, /metrics, and /events: what arrives there, signed with the secret in
    RETRAIN_TRIGGER_SECRET, makes the trigger look at once. None: no server."""

    @model_validator(mode="after")
    def _waits_fit(self) -> TriggerConfig:
        if self.listen and int(self.listen.rpartition(":")[2]) > 65535:
            raise ValueError(f"listen {self.listen} has no port from 0 to 65535")
        if self.cool_down_minutes > self.max_wait_minutes:
            raise ValueError(f"cool_down_minutes {self.cool_down_minutes:g} is above max_wait_minutes")
        return self


class ScheduleConfig(Section):
    """A recurring run: `cron` or `interval_minutes`. One at a time, and what was missed is not made up for."""

    name: Name
    """What it is called in the Kubeflow UI; unique in `kubeflow.schedules`."""
    cron: str | None = None
    """Six fields, seconds first: `0 30 2 * * *` is half past two each night, UTC."""
    interval_minutes: Annotated[int, Field(ge=1)] | None = None
    """Minutes from start to start, counted anew when the pipeline changes: `cron` for rhythms slower than releases."""
    source: str = "new"
    """What it runs on, see `retrain run`; `new` is what was delivered below `trigger.source` since the last run."""
    strategy: str = "auto"
    """See `retrain run`."""
    enabled: bool = True
    """False: it is there, and does not run."""

    @model_validator(mode="after")
    def _one_rhythm(self) -> ScheduleConfig:
        if (self.cron is None) == (self.interval_minutes is None):
            raise ValueError("either cron or interval_minutes")
        if self.cron is not None and len(self.cron.split()) != 6:
            raise ValueError(f"cron {self.cron!r} has {len(self.cron.split())} fields, it takes six, seconds first")
        return self


class KubeflowConfig(Section):
    """The Kubeflow Pipelines API, for `retrain submit`, `schedule`, `wait`, `logs` and the trigger."""

    host: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = None
    """Its address, such as `http://localhost:8888` behind a port-forward. None: that of the cluster it runs in."""
    namespace: Name | None = None
    """Namespace of the runs where each user has one (a Kubeflow profile). None: a standalone installation."""
    api_namespace: Name = "kubeflow"
    """Namespace of Kubeflow Pipelines itself, for the address in the cluster and, standalone, for logs."""
    token_file: str | None = None
    """File (absolute path) with a bearer token, read anew for each request. None: the projected service account token
    of Kubeflow, where it is mounted (/var/run/secrets/kubeflow/pipelines/token)."""
    ca_file: str | None = None
    """PEM file (absolute path) with the authority that signed the certificate of `host`; None: the system's."""
    experiment: Annotated[str, Field(min_length=1)] = "retrain"
    """Experiment that the runs are filed under; made where it does not exist."""
    pipeline: Annotated[str, Field(min_length=1)] = "retrain"
    """Name that the compiled pipeline is uploaded under, a version each time it changes."""
    config: str = "/etc/retrain/config.yaml"
    """Path of the configuration file as the pods see it."""
    gpu_type: str = ""
    """Resource name of the GPU for training, such as nvidia.com/gpu; empty trains on the CPU."""
    gpu_count: Annotated[int, Field(ge=1)] = 1
    """How many GPUs the training pod gets."""
    service_account: Name | None = None
    """Service account of the runs' pods; None: Kubeflow's default."""
    timeout_seconds: Annotated[int, Field(ge=1)] = 20
    """How long to wait for the answer to one request, in whole seconds."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Tries a request gets, the first included. A request that creates something is only tried again after looking
    whether it did."""
    schedules: tuple[ScheduleConfig, ...] = ()
    """Recurring runs. `retrain schedule apply` makes the API have these and no other ones of ours."""

    @field_validator("schedules")
    @classmethod
    def _each_schedule_once(cls, schedules: tuple[ScheduleConfig, ...]) -> tuple[ScheduleConfig, ...]:
        names = [schedule.name for schedule in schedules]
        if len(set(names)) < len(names):
            raise ValueError("each name once")
        return schedules


class Config(Section):
    """The whole file."""

    model: Name = "classifier"
    """Name of the model: the folder of its versions and its ledger."""
    dataset: Name = "images"
    """Name of the data set: the folder of its windows."""
    store: StoreConfig
    ingest: IngestConfig = IngestConfig()
    validation: ValidationConfig = ValidationConfig()
    drift: DriftConfig = DriftConfig()
    decision: DecisionConfig = DecisionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    promotion: PromotionConfig = PromotionConfig()
    events: EventsConfig = EventsConfig()
    report: ReportConfig = ReportConfig()
    retention: RetentionConfig = RetentionConfig()
    trigger: TriggerConfig = TriggerConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        for key in ("ladder", "candidates"):
            for name in getattr(self.decision, key):
                if name not in self.training.strategies:
                    known = ", ".join(self.training.strategies)
                    raise ValueError(f"decision.{key} names {name!r}, expected one of {known}")
        if wrong := {"auto", "skip"} & set(self.training.strategies):
            raise ValueError(f"training.strategies: {min(wrong)!r} is no name for a strategy, it means something else")
        if self.gate.budget < self.gate.old_margin:
            raise ValueError("gate.forgetting_budget is below gate.old_margin, which a single update may lose")
        if self.gate.max_latency_ratio is not None and not self.evaluation.latency_repeats:
            raise ValueError("gate.max_latency_ratio asks for a latency, and evaluation.latency_repeats is 0")
        if self.trigger.launcher == "kubeflow" and self.trigger.source and "://" not in self.trigger.source:
            raise ValueError("trigger.source is a directory, which the pods of trigger.launcher: kubeflow do not see")
        for schedule in self.kubeflow.schedules:
            if schedule.strategy not in ("auto", *self.training.strategies):
                raise ValueError(f"kubeflow.schedules: {schedule.name} asks for the strategy {schedule.strategy!r}")
            if schedule.source == "new" and not self.trigger.source:
                raise ValueError(
                    f"kubeflow.schedules: {schedule.name} takes what is new, and trigger.source is not set"
                )
        if self.training.strategies["retrain"].start != "fresh":
            raise ValueError("training.strategies.retrain must start fresh: it makes the first champion")
        return self


def planned(strategy: str) -> str | None:
    """The digest of the plan that is to be carried out, where `plan:DIGEST` was asked for."""
    return strategy.removeprefix(PLAN) if strategy.startswith(PLAN) else None


def check_strategy(strategy: str, config: Config) -> StrategyName | None:
    """The strategy a person forced, or None for `auto` (the policy's choice) and for a plan, `plan:DIGEST`.

    Raises:
        ConfigurationError: There is no such strategy; the message names the nearest.
    """
    names = config.training.strategies
    if strategy == "auto" or planned(strategy):
        return None
    if strategy in names:
        return strategy
    near = difflib.get_close_matches(strategy, names, n=1)
    raise ConfigurationError(
        f"strategy {strategy!r}" + (f", did you mean '{near[0]}'?" if near else ""),
        expected=f"one of auto, {', '.join(names)}; or plan:DIGEST",
        next_command="retrain run FOLDER --strategy auto",
    )


def load_config(path: str | Path) -> Config:
    """Read a configuration file and resolve the directory of its store against the file's folder.

    Raises:
        ConfigurationError: The file is missing, is not YAML, or has an unknown key or a wrong value; the message names
            the nearest right key.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"no configuration at {path} ({getattr(error, 'strerror', None) or error})",
            expected="a YAML file",
            next_command="retrain config > retrain.yaml, then edit store.uri",
        ) from error
    try:
        raw = _UniqueKeys(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{path} is not YAML: {error}", expected="key: value lines", next_command=f"mend {path}"
        ) from error
    config = parse_config(raw, origin=str(path))
    folders = {"uri": config.store.uri, "cache": config.store.cache}
    resolved = {key: str((path.parent / at).resolve()) for key, at in folders.items() if at and "://" not in at}
    key = config.promotion.signing_key
    promotion = {"signing_key": str((path.parent / key).resolve())} if key else {}
    source = config.trigger.source
    trigger = {"source": str((path.parent / source).resolve())} if source and "://" not in source else {}
    return config.model_copy(
        update={
            "store": config.store.model_copy(update=resolved),
            "promotion": config.promotion.model_copy(update=promotion),
            "trigger": config.trigger.model_copy(update=trigger),
        }
    )


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a section: the second would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_config(raw: object, *, origin: str) -> Config:
    """Check a parsed document against the model.

    Args:
        raw: What the YAML or JSON file holds.
        origin: Name of the file, for messages.

    Raises:
        ConfigurationError: See `load_config`.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ConfigurationError(
            f"{origin}: {problems}", expected="the keys that `retrain config` prints", next_command=f"mend {origin}"
        ) from error


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error" and isinstance(problem["input"], dict | Section):
        # Of a whole section, which would be long to repeat.
        return f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    if problem["type"] != "extra_forbidden":
        return f"{place or 'file'}: {problem['msg']} (got {problem['input']!r})"
    *parents, key = [str(part) for part in problem["loc"]]
    section: type[BaseModel] | None = Config
    for parent in parents:
        section = (
            _section(section.model_fields[parent].annotation) if section and parent in section.model_fields else section
        )
    assert section is not None, "sections nest, values do not"
    here = [".".join([*parents, name]) for name in section.model_fields]
    near = _nearest(key, here) or _nearest(key, _all_keys(Config))
    return f"unknown key '{place}'" + (f", did you mean '{near}'?" if near else "")


def _nearest(key: str, places: list[str]) -> str | None:
    """The dotted key whose last part looks most like `key`, if any does."""
    by_name = {place.rpartition(".")[2]: place for place in reversed(places)}
    match = difflib.get_close_matches(key, by_name, n=1, cutoff=0.6)
    return by_name[match[0]] if match else None


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if inner := _section(field.annotation):
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field holds: itself, one a name, or several."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    inner = arguments[-1] if origin is dict else arguments[0] if origin is tuple else annotation
    return inner if isinstance(inner, type) and issubclass(inner, Section) else None


def describe_config() -> str:
    """Render the defaults as a YAML file, each key under a comment that says what it means."""
    return _describe(Config(store=StoreConfig(uri="store")), "")


def _describe(section: Section, pad: str) -> str:
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        comment = _comment(field.description or type(value).__doc__, pad)
        if isinstance(value, Section):
            lines += ["", *comment, f"{pad}{name}:", _describe(value, pad + "  ")]
        elif (inner := _section(field.annotation)) and isinstance(value, tuple):
            items = [json.loads(item.model_dump_json(exclude_defaults=True)) for item in value]
            lines += [*comment, *_legend(inner, f"{pad}#   "), f"{pad}{name}: {_as_yaml(items)}"]
        elif inner:
            lines += [*comment, *_legend(inner, f"{pad}#   "), f"{pad}{name}:"]
            lines += [f"{pad}  {key}: {_differences(recipe)}" for key, recipe in value.items()]
        else:
            lines += [*comment, f"{pad}{name}: {_as_yaml(value)}"]
    return "\n".join(lines)


def _legend(section: type[Section], pad: str) -> list[str]:
    """What the keys of a section mean, and their defaults, as comments."""
    lines: list[str] = []
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        default = "" if field.is_required() or inner else f" ({_as_yaml(field.default)})"
        lines += [
            f"{pad}{name}{default}:",
            *(f"{pad}  {line.strip()}" for line in (field.description or "").splitlines()),
        ]
        lines += _legend(inner, f"{pad}  ") if inner else []
    return lines


def _differences(section: Section) -> str:
    """A section on one line, without what it leaves at the default."""
    return _as_yaml(section.model_dump(exclude_defaults=True))


def _as_yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str | None, pad: str) -> list[str]:
    return [f"{pad}# {line.strip()}" for line in (text or "").splitlines()]
