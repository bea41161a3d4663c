"""Checkpoints of a training in the store, so that a pod that is lost, or told to go, loses little.

A training is named by what is trained (window, champion, recipe, ...), not by the run: whoever starts it again goes on
from here. Files are written first, under names that carry their digest, `manifest.json` last; it names two generations,
so a file that was damaged costs one interval and not the training. Everything is safetensors and JSON.

    checkpoints/<model>/<training>/manifest.json             which files count
                                   <name>-<digest>.safetensors
                                   attempts/<n>.json         who tried, how far it came, how it ended

Not covered: what is in a snapshot (`loop`), and taking signals (`interruption`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal, Protocol, TypeVar

from pydantic import BaseModel, Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from components.core.contracts import Document
from components.core.errors import IntegrityError, StoreUnreachable
from components.core.storage import KeyMissing, ObjectStore, get_json, sha256_hex, to_json

logger = logging.getLogger(__name__)
GENERATIONS = 2
HEARTBEAT_SECONDS = 15.0
Doc = TypeVar("Doc", bound=BaseModel)
Ending = Literal["finished", "preempted", "out of memory", "error"]


class Progress(Document):
    """How far the steps have come: the number of steps taken, and what each finished epoch was like. `best` is the
    epoch (from 0) with the highest validation accuracy."""

    step: int = 0
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    best: int | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that the next step depends on: tensors by name, on the CPU or not, and the progress."""

    tensors: dict[str, Tensor]
    progress: Progress


class Attempt(Document):
    """One process's try at a training: where it began, how far it was known to be, and how it ended. `ended` is None
    while it runs, and for ever where it was lost. Seconds are of training, since it began."""

    number: int
    began_at_step: int
    step: int
    seconds: float
    started: datetime
    ended: Ending | None = None


class _File(Document):
    name: str
    sha256: str
    progress: Progress


class _Manifest(Document):
    stages: dict[str, _File] = Field(default_factory=dict)
    generations: tuple[_File, ...] = ()


class Keeper(Protocol):
    """What the loop needs of checkpoints."""

    def latest(self) -> Snapshot | None:
        """The newest snapshot that is what was written."""

    def due(self) -> bool:
        """Whether it is time for another one."""

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Keep a snapshot; with `wait`, be sure that it is kept on return."""

    def beat(self, step: int) -> None:
        """Tell how far the training is; cheap, call it in every step."""


class NoCheckpoints:
    """Keeps nothing: for short trainings, and for trials of a search."""

    def stage(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return make()

    def latest(self) -> Snapshot | None:
        return None

    def due(self) -> bool:
        return False

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        pass

    def beat(self, step: int) -> None:
        pass


class Checkpoints:
    """The checkpoints of one training. One writer at a time is expected: two cost work, and can end each other."""

    def __init__(
        self,
        store: ObjectStore,
        model: str,
        training: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        writer: bool = True,
    ) -> None:
        """Find the checkpoints of a training.

        Args:
            store: Where they are.
            model: Name of the model.
            training: Digest of what is trained.
            seconds: Between two snapshots.
            clock: Seconds, monotonic.
            writer: False for all but the first of several processes: they read only.
        """
        self.store, self.prefix, self.seconds, self.clock = store, f"checkpoints/{model}/{training}", seconds, clock
        self.writer = writer
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved = self._beaten = self._began = clock()
        self._attempt: Attempt | None = None
        self.on_kept: Callable[[], object] = lambda: None

    def stage(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a stage: what is kept, or else what `make` gives, which is then kept."""
        file = self._manifest().stages.get(name)
        if file is not None and (kept := self._read(file)) is not None:
            return kept
        tensors = make()
        if self.writer:
            written = self._write(name, tensors, Progress())
            manifest = self._manifest()
            self._put(manifest.model_copy(update={"stages": {**manifest.stages, name: written}}))
        return tensors

    def has(self, name: str) -> bool:
        """Whether a stage is kept, and is what was written."""
        file = self._manifest().stages.get(name)
        return file is not None and self._read(file) is not None

    def document(self, name: str, kind: type[Doc], make: Callable[[], Doc]) -> Doc:
        """A document of the training: what is kept, or else what `make` gives, which is then kept."""
        key = f"{self.prefix}/{name}.json"
        kept = get_json(self.store, key, kind)
        if kept is None:
            kept = make()
            if self.writer:
                self.store.put(key, to_json(kept))
        return kept

    def latest(self) -> Snapshot | None:
        for file in self._manifest().generations:
            if (tensors := self._read(file)) is not None:
                return Snapshot(tensors=tensors, progress=file.progress)
        return None

    def due(self) -> bool:
        return self.clock() - self._saved >= self.seconds

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Keep a snapshot; it is copied now and written by a thread, one at a time."""
        self._saved = self.clock()
        if not self.writer:
            return
        self._finish_writing()
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in snapshot.tensors.items()}
        self._writing = self._pool.submit(self._keep, copied, snapshot.progress)
        if wait:
            self._finish_writing()

    def begin_attempt(self) -> Attempt:
        """File that a process tries, and where it begins; to be called once, before the steps."""
        newest = self.latest()
        before = [attempt.number for attempt in self.attempts()]
        step = newest.progress.step if newest else 0
        self._began = self._beaten = self._saved = self.clock()
        self._attempt = Attempt(
            number=max(before, default=0) + 1, began_at_step=step, step=step, seconds=0.0, started=datetime.now(UTC)
        )
        self._file_attempt()
        return self._attempt

    def beat(self, step: int) -> None:
        if self._attempt is None or self.clock() - self._beaten < HEARTBEAT_SECONDS:
            return
        self._beaten = self.clock()
        self._update_attempt(step, None)

    def end_attempt(self, ended: Ending, step: int | None = None) -> None:
        """File how the attempt ended."""
        assert self._attempt is not None
        self._finish_writing()
        self._update_attempt(self._attempt.step if step is None else step, ended)

    def attempts(self) -> list[Attempt]:
        """All tries so far, oldest first."""
        listed = self.store.list_objects(f"{self.prefix}/attempts/")
        found = [self._attempt_at(entry.key) for entry in listed]
        return sorted((a for a in found if a), key=lambda a: a.number)

    def forget_steps(self) -> None:
        """Drop the snapshots: the training starts afresh, from its prepared start."""
        if not self.writer:
            return
        self._put(self._manifest().model_copy(update={"generations": ()}))

    def remove(self) -> None:
        """Remove everything: the training is done and filed."""
        self._finish_writing()
        self.store.delete(f"{self.prefix}/manifest.json")  # first: what it names must be there as long as it is
        for listed in list(self.store.list_objects(f"{self.prefix}/")):
            self.store.delete(listed.key)

    def _keep(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        written = self._write(f"step-{progress.step}", tensors, progress)
        manifest = self._manifest()
        generations = (written, *(old for old in manifest.generations if old.name != written.name))
        self._put(manifest.model_copy(update={"generations": generations[:GENERATIONS]}))
        for old in generations[GENERATIONS:]:
            self.store.delete(f"{self.prefix}/{old.name}")
        self.on_kept()

    def _write(self, name: str, tensors: dict[str, Tensor], progress: Progress) -> _File:
        data = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        digest = sha256_hex(data)
        file = _File(name=f"{name}-{digest[:16]}.safetensors", sha256=digest, progress=progress)
        self.store.put(f"{self.prefix}/{file.name}", data)
        return file

    def _read(self, file: _File) -> dict[str, Tensor] | None:
        """What a file holds, or None, said aloud, where it is gone or damaged."""
        try:
            data = self.store.get(f"{self.prefix}/{file.name}")
        except KeyMissing:
            logger.warning("train: checkpoint %s is gone; going on without it", file.name)
            return None
        if sha256_hex(data) != file.sha256:
            logger.warning("train: checkpoint %s is damaged; going on without it", file.name)
            return None
        return dict(load_tensors(data))

    def _manifest(self) -> _Manifest:
        try:
            return get_json(self.store, f"{self.prefix}/manifest.json", _Manifest) or _Manifest()
        except IntegrityError as error:
            logger.warning("train: the list of checkpoints is damaged, starting afresh: %s", error)
            return _Manifest()

    def _attempt_at(self, key: str) -> Attempt | None:
        try:
            return get_json(self.store, key, Attempt)
        except IntegrityError as error:
            logger.warning("train: what is known of an attempt is damaged, going on without it: %s", error)
            return None

    def _put(self, manifest: _Manifest) -> None:
        self.store.put(f"{self.prefix}/manifest.json", to_json(manifest))

    def _finish_writing(self) -> None:
        """Wait for the snapshot that is being written. One that could not be kept is not worth the training."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except StoreUnreachable as error:
            logger.warning("train: a checkpoint could not be kept: %s", error)

    def _update_attempt(self, step: int, ended: Ending | None) -> None:
        assert self._attempt is not None
        seconds = self.clock() - self._began
        self._attempt = self._attempt.model_copy(update={"step": step, "seconds": seconds, "ended": ended})
        self._file_attempt()

    def _file_attempt(self) -> None:
        assert self._attempt is not None
        if not self.writer and self._attempt.ended != "out of memory":  # which any process can run
            return
        try:
            self.store.put(f"{self.prefix}/attempts/{self._attempt.number:04d}.json", to_json(self._attempt))
        except StoreUnreachable as error:
            logger.warning("train: how far it is could not be told: %s", error)


def lost_seconds(attempts: list[Attempt]) -> float:
    """Training time that was spent on steps that had to be taken again: at least, for a lost pod is known only up to
    its last heartbeat."""
    lost = 0.0
    for attempt, following in pairwise(attempts):
        done = attempt.step - attempt.began_at_step
        again = max(0, attempt.step - following.began_at_step)
        lost += attempt.seconds * min(again, done) / done if done > 0 else 0.0
    return lost
