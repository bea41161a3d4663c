"""What people and manifests start: `retrain watch`, the service, and `retrain submit`, one run on one source."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Literal

from prometheus_client import CollectorRegistry

from components.core.claims import ClaimState, Entry, Request
from components.core.config import Config, check_strategy, load_config, planned
from components.core.contracts import RunArguments
from components.core.errors import ConfigurationError, RunFailed
from components.core.metrics import TriggerMetrics
from components.core.plans import find_plan
from components.core.probe import check_store
from components.core.run_claims import run_arguments
from components.core.storage import ObjectStore, open_store
from components.core.windows import Window
from components.ingest.deliveries import Deliveries
from components.ingest.sources import absolute_source, check_source, names_claim, names_window
from pipelines.status import user
from pipelines.trigger.launcher import Launcher, LauncherUnavailable
from pipelines.trigger.service import Loop, Trigger, tell
from pipelines.trigger.watcher import Look

logger = logging.getLogger(__name__)
STUCK_SECONDS = 600.0  # longest that a look may take before the process had better be restarted
ASK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What became of a request: its run is `running`; it is `queued` behind something; or a run took the source before
    and is `done`. `sentence` says it, with what to do next."""

    status: Literal["running", "queued", "done"]
    run_id: str | None
    claim: int | None
    sentence: str


def watch_once(config_path: Path) -> str:
    """Look once, and do all that can be done now. Returns what came of it.

    Raises:
        ConfigurationError: See `load_config`; the source is not there, or nothing can be started.
        UnsoundStore: The store does not keep what claims rest on.
        RunFailed: The engine does not answer.
    """
    trigger = _open(config_path, once=True)
    with _engine_answers():
        return tell(trigger.tick())


def watch_on(config_path: Path) -> None:
    """Look again and again until SIGTERM or SIGINT; the present look is finished first.

    Raises:
        ConfigurationError, UnsoundStore: See `watch_once`; `trigger.listen` cannot be listened on.
    """
    trigger = _open(config_path)
    config = trigger.config.trigger
    registry = CollectorRegistry()
    metrics = TriggerMetrics(registry, trigger.config.model)
    loop = Loop(trigger, metrics, config.poll_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        # A thread: a handler that takes the lock of an event would wait for the very code that it interrupts.
        signal.signal(number, lambda *_: Thread(target=loop.stop).start())
    logger.info("watching %s for %s as %s", config.source, trigger.config.model, trigger.me)
    with _server(config.listen, registry, metrics, loop):
        loop.run()
    logger.info("stopped")


def submit(config_path: Path, source: str, strategy: str, *, again: bool) -> Submission:
    """Have one run on a source, however many ask for it: start it, or leave it to the trigger behind what is under way.

    Args:
        config_path: The configuration file.
        source: See `retrain run`; not `new`.
        strategy: auto, or the name of one.
        again: Also where a run has taken that source before.

    Raises:
        ConfigurationError, UnsoundStore: See `watch_once`; no such source or strategy.
        SourceError: The source is no delivery.
        RunFailed: The engine does not answer, or the run was not started in time.
    """
    config = load_config(config_path)
    store = _open_store(config)
    check_strategy(strategy, config)
    source = absolute_source(source).rstrip("/")
    if digest := planned(strategy):
        find_plan(store, config.model, digest)
    _check_submitted(config, store, source)
    trigger = Trigger(config, store, make_launcher(config_path, config, store))
    return submit_to(trigger, run_arguments(config, source, strategy), again=again)


def submit_to(trigger: Trigger, arguments: RunArguments, *, again: bool) -> Submission:
    """Ask for a run, and act as a trigger until it is known what becomes of that.

    Raises:
        RunFailed: The engine does not answer, or the run was not started in time.
    """
    source, patience = arguments.source, 2 * trigger.config.trigger.lease_seconds

    def ask(state: ClaimState) -> Entry | None:
        asked = any(request.arguments.source == source for request in state.requests)
        if asked or (state.open is not None and source in state.open.deliveries):
            return None
        if source in state.taken and not again:
            return None
        return Request(actor=user(), arguments=arguments, again=again)

    trigger.log.enter(ask)
    began = time.monotonic()
    with _engine_answers():
        while time.monotonic() - began < patience:
            if submission := _locate(trigger.tick(), trigger.log.read(), source):
                return submission
            time.sleep(ASK_SECONDS)
    raise RunFailed(
        f"{source} is claimed, and its run has not begun within {patience:g} s",
        expected="whoever claimed it to start its run",
        next_command="retrain status; then the same command again: it goes on from there",
    )


def make_launcher(config_path: Path, config: Config, store: ObjectStore) -> Launcher:
    """What `trigger.launcher` names.

    Raises:
        ConfigurationError: It is not known where the Kubeflow API is, or RETRAIN_IMAGE is not set.
    """
    if config.trigger.launcher == "local":
        from pipelines.trigger.local import LocalLauncher

        return LocalLauncher(config_path, config, store)
    from pipelines.client import KubeflowClient

    client = KubeflowClient(config)
    client.compiled()  # a trigger that cannot say what to run must not wait for the first delivery to tell
    return client


def _open(config_path: Path, *, once: bool = False) -> Trigger:
    config = load_config(config_path)
    store = _open_store(config)
    deliveries = Deliveries(config)
    deliveries.check()
    launcher = make_launcher(config_path, config, store)
    look = deliveries.look_once if once else deliveries.look
    return Trigger(config, store, launcher, lambda state: look(state.taken))


def _open_store(config: Config) -> ObjectStore:
    store = open_store(config.store)
    store.check_reachable(write=True)
    check_store(store)
    return store


def _check_submitted(config: Config, store: ObjectStore, source: str) -> None:
    if names_claim(source):
        raise ConfigurationError(
            f"the source {source!r}",
            expected="a delivery, or the id of a window",
            next_command="retrain watch --once takes what is new",
        )
    if names_window(source):
        Window.open(store, config.dataset, source)
        return
    if config.trigger.launcher == "kubeflow" and "://" not in source:
        raise ConfigurationError(
            f"the local path {source}",
            expected="an s3:// prefix that the pods can read, or the id of a window",
            next_command=f"retrain ingest {source}, then retrain submit WINDOW",
        )
    check_source(source, config)


def _locate(look: Look, state: ClaimState, source: str) -> Submission | None:
    """What became of a request; None while its run is being started."""
    if any(request.arguments.source == source for request in state.requests):
        behind = f"{tell(look)}. Its turn comes then, if a trigger runs (retrain watch)"
        return Submission(status="queued", run_id=None, claim=None, sentence=f"{source} is queued: {behind}.")
    number = state.taken.get(source)
    claim = state.open
    if claim is not None and claim.number == number:
        if claim.run_id is None and not claim.failed:
            return None
        if claim.failed:
            sentence = f"{source} is tried again later: {tell(look)}."
            return Submission(status="queued", run_id=None, claim=number, sentence=sentence)
        sentence = f"run {claim.run_id} is at {source}; next: retrain wait {claim.run_id}"
        return Submission(status="running", run_id=claim.run_id, claim=number, sentence=sentence)
    closed = state.closed.get(number) if number is not None else None
    if closed is None:
        return None
    sentence = f"{closed.run_id or 'no run'} took {source} ({closed.result}); --again has another run on it"
    return Submission(status="done", run_id=closed.run_id, claim=number, sentence=sentence)


@contextmanager
def _engine_answers() -> Iterator[None]:
    try:
        yield
    except LauncherUnavailable as error:
        raise RunFailed(
            f"the engine does not answer: {error}",
            expected="an engine that starts runs",
            next_command="the same command again: what was asked is on record, and no run is started twice",
        ) from error


@contextmanager
def _server(listen: str | None, registry: CollectorRegistry, metrics: TriggerMetrics, loop: Loop) -> Iterator[None]:
    """Answer over HTTP, if that is wanted."""
    if listen is None:
        yield
        return
    from pipelines.trigger.server import SECRET_VARIABLE, Application, Doorkeeper, serve

    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        logger.warning("%s is not set: no event is accepted, only polling starts runs", SECRET_VARIABLE)

    def unhealthy() -> str | None:
        busy = loop.busy_since
        seconds = time.monotonic() - busy if busy is not None else 0.0
        return f"the last look began {seconds:.0f} s ago" if seconds > STUCK_SECONDS else None

    def unready() -> str | None:
        return loop.error or (None if loop.looked else "it has not looked yet")

    application = Application(
        registry,
        wake=loop.wake,
        unhealthy=unhealthy,
        unready=unready,
        tell=metrics.on_event,
        doorkeeper=Doorkeeper(secret) if secret else None,
    )
    with serve(application, listen, metrics.on_event) as port:
        logger.info("listening on port %d", port)
        yield
