"""What each strategy achieves in many situations: the table that the policy is measured against.

Real images (Fashion-MNIST at 14 x 14, Debian package dataset-fashion-mnist). In each scenario a champion has learnt
2,400 images; a window arrives; then every strategy of the configuration trains a challenger with the product's own
steps, and it and the champion are judged on 4,000 old and 4,000 new test images. Kept are the evidence that the steps
file before anything is trained, both accuracies, and the processor seconds of each training.

    .venv/bin/python benchmarks/scenarios.py [--quick] [--seeds N] [--only SCENARIO ...] [--output FILE]

What the file has is not run again: it may be stopped at any time, and a new strategy is added to all cases. Takes one
thread a process, as many processes as the machine has processors. Not covered: judging a policy (`decide.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from PIL import Image
from torch import Tensor
from train import FASHION, fashion

from components.core.config import Config, load_config
from components.core.contracts import DriftReport, RunParameters, ValidationReport, WindowDocument
from components.core.corruptions import corrupt
from components.core.datasets import PixelCache, load_images
from components.core.models import Classifier, load_classifier
from components.core.recipes import RECIPES
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import open_store
from components.core.windows import Window
from components.decide import step as decide
from components.decide.evidence import gather_evidence
from components.detect_drift import step as detect_drift
from components.ingest import step as ingest
from components.train import step as train
from components.train.compute import Compute
from components.train.interruption import Interruption
from components.train.job import Job
from components.train.loop import accuracy
from components.train.rung import train_rung
from components.validate import step as validate

TABLE = Path(__file__).with_name("outcomes.jsonl")
IMAGE_SIZE = 14  # a quarter of the work of 28
HALF, OLD_ROWS, TEST_ROWS = 30_000, 3_000, 4_000  # a fifth of the old ones is held out
Rows = tuple[Tensor, Tensor]  # images uint8 (n, 1, 28, 28), labels int64 (n,)
Change = Callable[[Tensor, torch.Generator], Tensor]


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def by(name: str, strength: float) -> Change:
    """One of the product's corruptions."""
    return lambda images, generator: corrupt(name, images, strength, generator)


def other_lamp(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mild: brighter, flatter, a little noise."""
    for name, strength in (("brighter", 0.08), ("low-contrast", 0.12), ("noise", 0.08)):
        images = corrupt(name, images, strength, generator)
    return images


def lying(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.rot90(1, (2, 3))


def half(change: Change) -> Change:
    """Change every second image only."""

    def changed(images: Tensor, generator: torch.Generator) -> Tensor:
        images = images.clone()
        images[::2] = change(images[::2], generator)
        return images

    return changed


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A window and what the champion knew before.

    Attributes:
        rows: Images of the window, a fifth of which is held out.
        change: What is different about its images.
        known: How many of the ten classes the champion knows.
        learnt: What the champion's windows looked like, oldest first.
        rare: Share of images that the rarest class keeps; the others lie between, evenly on a logarithmic scale.
        wrong_labels: Share of the labels that are wrong.
        image_size: What the configuration asks for, where it is not what the champion has.
    """

    rows: int = 750
    change: Change = unchanged
    known: int = 10
    learnt: tuple[Change, ...] = (unchanged,)
    rare: float = 1.0
    wrong_labels: float = 0.0
    image_size: int = IMAGE_SIZE


SCENARIOS: dict[str, Scenario] = {
    "same, 5 % more": Scenario(rows=150),
    "same, a quarter more": Scenario(),
    "other lamp": Scenario(change=other_lamp),
    "other lamp, 50 images": Scenario(rows=60, change=other_lamp),
    "closer": Scenario(change=by("zoom-in", 0.9)),
    "closer, 50 images": Scenario(rows=60, change=by("zoom-in", 0.9)),
    "lying": Scenario(change=lying),
    "lying, 150 images": Scenario(rows=188, change=lying),
    "half of them lying": Scenario(change=half(lying)),
    "blurred": Scenario(change=by("blur", 0.9)),
    "fewer pixels": Scenario(change=by("resolution", 0.6)),
    "noisy": Scenario(change=by("noise", 0.5)),
    "two unseen classes": Scenario(known=8),
    "one unseen class, lying": Scenario(known=9, change=lying),
    "larger input wanted": Scenario(image_size=20),
    "rare classes 100:1": Scenario(rare=0.01),
    "rare classes, other lamp": Scenario(rare=0.01, change=other_lamp),
    "rare classes, lying": Scenario(rare=0.02, change=lying),
    "four times more": Scenario(rows=12_000),
    "four times more, lying": Scenario(rows=12_000, change=lying),
    "a third wrong labels": Scenario(wrong_labels=0.33),
    "a tenth wrong labels, other lamp": Scenario(wrong_labels=0.1, change=other_lamp),
    "an old kind returns": Scenario(learnt=(unchanged, lying), change=lying),
}
QUICK = ("same, 5 % more", "closer, 50 images")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="two scenarios, one seed, into a file of its own")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO")
    options.add_argument("--output", type=Path, default=TABLE)
    chosen = options.parse_args()
    if not FASHION.exists():
        print("needs Fashion-MNIST: apt-get install dataset-fashion-mnist", file=sys.stderr)
        return 2
    names = chosen.only or (QUICK if chosen.quick else tuple(SCENARIOS))
    cases = [(name, seed) for seed in range(1 if chosen.quick else chosen.seeds) for name in names]
    with tempfile.TemporaryDirectory(prefix="retrain-scenarios-") as folder:
        output = Path(folder) / "quick.jsonl" if chosen.quick else chosen.output
        run_cases(cases, Path(folder), output)
        table = read_table(output)
    print(f"{len(table)} cases, {sum(len(case['outcomes']) for case in table)} challengers")
    return 0


def read_table(path: Path = TABLE) -> list[dict[str, Any]]:
    """The cases of a file: scenario, seed, `Evidence`, outcome of each strategy ('skip' is the champion's).

    A case has a line for each time that strategies were added to it.
    """
    cases: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        case = json.loads(line)
        known = cases.setdefault((case["scenario"], case["seed"]), case)
        known["outcomes"].update(case["outcomes"])
    return list(cases.values())


def run_cases(cases: Sequence[tuple[str, int]], folder: Path, output: Path) -> None:
    """Run what the file lacks of some cases, and add it."""
    began = time.monotonic()
    known = {(case["scenario"], case["seed"]): set(case["outcomes"]) for case in read_table(output)}
    missing = {case: [s for s in RECIPES if s not in known.get(case, ())] for case in cases}
    cases = [case for case in cases if missing[case]]
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as workers:
        bases = {base_of(SCENARIOS[name], seed) for name, seed in cases}
        list(workers.map(make_base, [folder] * len(bases), sorted(bases)))
        waiting = [workers.submit(run_case, folder, name, seed, missing[name, seed]) for name, seed in cases]
        with output.open("a") as file:
            for number, case in enumerate(as_completed(waiting), start=1):
                if case.exception():
                    workers.shutdown(cancel_futures=True)  # else the traceback would come after all the others
                result = case.result()
                print(json.dumps(result), file=file, flush=True)
                name, minutes = result["scenario"], (time.monotonic() - began) / 60
                print(f"{number} of {len(cases)}: {name}, {minutes:.1f} min", file=sys.stderr, flush=True)


# A champion: seed, classes it knows, names of what its windows looked like.
Base = tuple[int, int, tuple[str, ...]]
LEARNT = {"unchanged": unchanged, "lying": lying}


def base_of(scenario: Scenario, seed: int) -> Base:
    return seed, scenario.known, tuple(change.__name__ for change in scenario.learnt)


def make_base(folder: Path, base: Base) -> None:
    """Train the champion of some scenarios in a store of its own, which their cases copy."""
    seed, known, learnt = base
    place = folder / base_name(base)
    place.mkdir(parents=True)
    config = write_config(place, image_size=IMAGE_SIZE)
    for turn, name in enumerate(learnt):
        images, labels = rows_before(seed, slice(turn * OLD_ROWS, (turn + 1) * OLD_ROWS), known)
        changed = LEARNT[name](images, torch.Generator().manual_seed(seed))
        strategy = "auto" if turn == 0 else "retrain"
        run, window = begin(config, f"base-{turn}", write_folder(place / f"old-{turn}", (changed, labels)), strategy)
        decision = decide.run(str(config), run.run_id, window)
        assert decision.action == "train", decision.sentence
        summary = train.run(str(config), run.run_id, window, 1)
        registry = Registry(run.store, run.config.model)
        champion = registry.champion()
        registry.append(
            "promotion",
            summary.version,
            expected_champion=champion.version if champion else None,
            window=window,
            run_id=run.run_id,
            actor="benchmark",
            reason="the champion of a scenario",
        )


def run_case(folder: Path, name: str, seed: int, strategies: Sequence[str]) -> dict[str, Any]:
    """Let the window of a scenario arrive, file the evidence, and train with each of the strategies."""
    scenario = SCENARIOS[name]
    place = folder / f"{seed}-{sorted(SCENARIOS).index(name)}"
    shutil.copytree(folder / base_name(base_of(scenario, seed)), place)
    config = write_config(place, scenario.image_size)
    generator = torch.Generator().manual_seed(1000 + seed)
    images, labels = rows_after(seed, scenario.rows, scenario.rare)
    arrived = scenario.change(images, generator), spoil(labels, scenario.wrong_labels, generator)
    run, window = begin(config, "evidence", write_folder(place / "new", arrived), "auto")
    settings = run.config
    holdouts = list(write_holdouts(place, scenario, seed, generator, settings))
    evidence = gather_evidence(run, window).model_dump(mode="json", exclude_defaults=True)
    registry = Registry(run.store, settings.model)
    version = registry.champion().version  # type: ignore[union-attr]
    champion = load_classifier(registry, version)
    release(registry, version, window)
    outcomes = {"skip": (0.0, *judge(champion, holdouts, settings))}
    for strategy in strategies:
        attempt = again(run, f"with-{strategy}", strategy)
        decide.run(str(config), attempt.run_id, window)
        job = Job(attempt, window, 1)
        if strategy == strategies[0]:
            train_rung(attempt, window, 1, Interruption())  # decodes the images, which no other one does
            job.checkpoints.remove()
        clock = time.process_time()
        train_rung(attempt, window, 1, Interruption())
        seconds = time.process_time() - clock
        outcomes[strategy] = (seconds, *judge(train.result_of(job)[1], holdouts, settings))
        job.checkpoints.remove()
    shutil.rmtree(place)
    return {
        "scenario": name,
        "seed": seed,
        "evidence": evidence,
        "outcomes": {
            strategy: {"seconds": round(seconds, 2), "old": round(old, 5), "new": round(new, 5)}
            for strategy, (seconds, old, new) in outcomes.items()
        },
    }


def begin(config: Path, run_id: str, source: Path, strategy: str) -> tuple[Run, str]:
    """The steps up to the decision."""
    window = ingest.run(str(config), run_id, str(source), strategy).id
    validate.run(str(config), run_id, window)
    detect_drift.run(str(config), run_id, window)
    return Run(open_store(load_config(config).store), run_id), window


def release(registry: Registry, champion: str, window: str) -> None:
    """Let a window pass that validation or triage sets aside: what it would have done is of interest, too."""
    registry.append(
        "release",
        None,
        expected_champion=champion,
        window=window,
        run_id=None,
        actor="benchmark",
        reason="to see what comes of it",
    )


def again(run: Run, run_id: str, strategy: str) -> Run:
    """Another run on the same window, with what the first one found, in which a person asks for a strategy."""
    other = Run(run.store, run_id)
    parameters: RunParameters = run.parameters.model_copy(update={"run_id": run_id, "strategy": strategy})
    other.begin(run.config, parameters)
    for step, kind in (("ingest", WindowDocument), ("validate", ValidationReport), ("detect_drift", DriftReport)):
        record = run.record(step, kind)  # type: ignore[type-var]
        assert record is not None
        other.write(record)
    return other


def write_holdouts(
    place: Path, scenario: Scenario, seed: int, generator: torch.Generator, config: Config
) -> Iterator[Window]:
    """Test images like those that the champion learnt, then like the window's but with all classes equally often."""
    images, labels = fashion("t10k", 10_000)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    old, new = order[:TEST_ROWS], order[TEST_ROWS : 2 * TEST_ROWS]
    old = old[labels[old] < scenario.known]
    parts = old.chunk(len(scenario.learnt))
    learnt = [change(images[part], generator) for change, part in zip(scenario.learnt, parts, strict=True)]
    store = open_store(config.store)
    elsewhere = config.model_copy(update={"dataset": "holdouts"})
    for name, rows in (
        ("old", (torch.cat(learnt), labels[old])),
        ("new", (scenario.change(images[new], generator), labels[new])),
    ):
        document = ingest.ingest(store, elsewhere, str(write_folder(place / f"test-{name}", rows)))
        yield Window.open(store, "holdouts", document.id)


def judge(model: Classifier, holdouts: Sequence[Window], config: Config) -> Iterator[float]:
    """Accuracy on each holdout; an image of a class that the model does not know counts as wrong."""
    cache = PixelCache(config.store)
    for window in holdouts:
        rows = load_images([window], None, model.spec, model.spec.classes, cache)
        yield accuracy(model, rows.images, rows.labels, Compute())


def rows_before(seed: int, part: slice, known: int) -> Rows:
    """Images that a champion learns from, of the first `known` classes: from the first half of a seed's order."""
    images, labels = fashion("train", 60_000)
    order = order_of(seed, labels)[:HALF]
    chosen = order[labels[order] < known][part]
    return images[chosen], labels[chosen]


def rows_after(seed: int, rows: int, rare: float) -> Rows:
    """Images that arrive later, of all classes, the later ones ever rarer: from the second half."""
    images, labels = fashion("train", 60_000)
    order = order_of(seed, labels)[HALF:]
    shares = rare ** (torch.arange(10) / 9)
    kept = torch.rand(len(order), generator=torch.Generator().manual_seed(seed)) < shares[labels[order]]
    chosen = order[kept][:rows]
    return images[chosen], labels[chosen]


def order_of(seed: int, labels: Tensor) -> Tensor:
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))


def spoil(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Give a share of the rows another label."""
    wrong = torch.rand(len(labels), generator=generator) < share
    other = torch.randint(1, 10, (len(labels),), generator=generator)
    return torch.where(wrong, (labels + other) % 10, labels)


def write_folder(folder: Path, rows: Rows) -> Path:
    """Images as PNG files in class folders."""
    for label in rows[1].unique().tolist():
        (folder / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(rows[0], rows[1].tolist(), strict=True)):
        Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{number}.png", compress_level=1)
    return folder


def write_config(place: Path, image_size: int) -> Path:
    path = place / "retrain.yaml"
    settings = {
        "store": {"uri": "store", "cache": "cache"},
        "ingest": {"workers": 1},
        "training": {"architecture": "small-cnn", "image_size": image_size, "channels": 1, "cpu_threads": 1},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def base_name(base: Base) -> str:
    seed, known, learnt = base
    return f"base-{seed}-{known}-{'-'.join(learnt)}"


if __name__ == "__main__":
    sys.exit(main())
