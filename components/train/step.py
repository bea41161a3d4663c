"""Train: run one rung of the plan where the configuration says, and save the challenger as a version."""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import save as save_tensors

from components.core.contracts import Lineage, TrainingSummary
from components.core.exemplars import write_exemplars
from components.core.models import Classifier, build_classifier, save_classifier
from components.core.reference import build_reference
from components.core.registry import EXEMPLARS, FISHER
from components.core.runs import open_run, perform
from components.core.windows import SCHEMA
from components.train.checkpoint import lost_seconds
from components.train.fisher import accumulate_fisher, empirical_fisher
from components.train.job import Job, Outcome
from components.train.launch import Call, launch
from components.train.memory import candidates, choose_exemplars
from components.train.randomness import Purpose, torch_generator
from components.train.replay import choose_replay
from components.train.rung import train_rung
from components.train.strategies import MODEL, embed


def run(config_path: str, run_id: str, window: str, rung: int) -> TrainingSummary:
    """Train rung number `rung` (from 1) of the run's plan on a window, and save the challenger.

    A training that was cut off goes on from its last checkpoint, whichever run it belonged to.

    Raises:
        Preempted: Told to stop (SIGTERM); a checkpoint is kept.
        ConfigurationError, RunFailed: See `train_rung` and `launch`.
    """
    record = open_run(config_path, run_id)
    job = Job(record, window, rung)
    call = Call(config_path=config_path, run_id=run_id, window=window, rung=rung)
    trained: list[TrainingSummary] = []

    def work() -> TrainingSummary:
        trained.append(_train(job, call))
        return trained[0]

    summary = perform(f"train-{rung}", record, TrainingSummary, work)
    if trained:  # not when the record was there already: another run of the same training may be under way
        job.checkpoints.remove()  # after the record: lost in between, the result is still there
    return summary


def _train(job: Job, call: Call) -> TrainingSummary:
    gpus = torch.cuda.device_count()
    launch(
        call,
        job.config.training,
        job.checkpoints,
        here=lambda interruption: train_rung(job.record, job.window, job.rung, interruption),
        gpus=gpus,
    )
    outcome, model = result_of(job)
    version = job.registry.save_version(_files(job, outcome, model))
    return _summary(job, outcome, version)


def result_of(job: Job) -> tuple[Outcome, Classifier]:
    """What a training left among its checkpoints; the model in evaluation mode, on the device."""
    outcome = job.checkpoints.document("outcome", Outcome, _nothing)
    weights = job.checkpoints.stage("finished", _nothing)
    model = build_classifier(outcome.spec, torch_generator(0, Purpose.WEIGHTS))
    model.load_state_dict({name.removeprefix(MODEL): value for name, value in weights.items()})
    return outcome, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _nothing() -> NoReturn:
    raise AssertionError("a launcher returns when the result is there")


def _files(job: Job, outcome: Outcome, model: Classifier) -> dict[str, bytes]:
    """The version: the model, what drift detection compares with, and what the next update needs."""
    config, spec = job.config, outcome.spec
    lineage = Lineage(
        parent=job.decision.champion,
        anchor=_anchor(job, outcome),
        windows=(*job.decision.old_windows, job.window),
        strategy=job.plan.strategy,
        hyperparameters=outcome.recipe,
        seed=config.training.seed,
        package=package_version("retrain-pipeline"),
    )
    holdout = job.images([*job.old_windows, job.new_window], "holdout", spec, columns=SCHEMA.names)
    reference = build_reference(
        model,
        holdout,
        config.evaluation.batch_size,
        config.drift.rehearsal_images,
        torch_generator(config.training.seed, Purpose.REFERENCE),
    )
    files = {**save_classifier(model), **reference, "lineage.json": lineage.model_dump_json(indent=1).encode()}
    files[EXEMPLARS] = write_exemplars(_exemplars(job, outcome, model))
    if outcome.recipe.ewc:
        files[FISHER] = save_tensors(_fisher(job, outcome, model))
    return files


def _anchor(job: Job, outcome: Outcome) -> str | None:
    """The last version trained from scratch before this one; None where this one is."""
    champion = job.decision.champion
    if champion is None or outcome.recipe.start == "fresh":
        return None
    before = job.registry.lineage(champion)
    return champion if before.hyperparameters.start == "fresh" else before.anchor


def _exemplars(job: Job, outcome: Outcome, model: Classifier) -> pa.Table:
    """What the challenger remembers, of what the champion remembered and of the window."""
    training, spec = job.config.training, outcome.spec
    new = candidates([job.new_window], job.old_windows, training.seed)
    rows = pa.concat_tables([job.remembered(job.old_windows), new])
    rows = rows.filter(pc.is_in(rows["label"], pa.array(spec.classes)))
    features = None
    if training.exemplar_choice == "herding":
        features = embed(model, job.open(rows, spec).images, job.config.evaluation.batch_size)
    return choose_exemplars(rows, training, features)


def _fisher(job: Job, outcome: Outcome, model: Classifier) -> dict[str, torch.Tensor]:
    """What matters to the challenger: the window's information, on top of the champion's, which fades."""
    training = job.config.training
    rows = job.new_rows(outcome.spec)
    chosen = rows.subset(
        choose_replay(rows.labels, training.fisher_rows, torch_generator(training.seed, Purpose.ROWS, 2))
    )
    new = empirical_fisher(model, chosen.images, chosen.labels)
    return {n: v.contiguous().cpu() for n, v in accumulate_fisher(job.fisher(), new, training.fisher_decay).items()}


def _summary(job: Job, outcome: Outcome, version: str) -> TrainingSummary:
    attempts = job.checkpoints.attempts()
    seconds = sum(attempt.seconds for attempt in attempts)
    return TrainingSummary(
        version=version,
        strategy=job.plan.strategy,
        rows=outcome.rows,
        replayed_rows=outcome.replayed_rows,
        classes=outcome.spec.classes,
        losses=outcome.losses,
        accuracies=outcome.accuracies,
        seconds=seconds,
        images_per_second=outcome.rows * outcome.epochs / max(seconds, 1e-9),
        device=outcome.device,
        processor=outcome.processor,
        gpus=outcome.gpus,
        attempts=len(attempts),
        lost_seconds=lost_seconds(attempts),
    )
