"""What a look costs where a million images lie already, and what becomes of 64 who ask for the same run at once.

A look of the trigger at an S3 server (versitygw, `make test-deps`) with 1,000,000 old keys in 1,000 deliveries, all of
them taken, and 100 new keys: seconds and peak memory of a fresh process, of its first look (which also reads the log of
claims and claims what is new) and of the next one, beside a listing of all keys on the same server. Then 64 processes
submit one window at once.

    .venv/bin/python benchmarks/trigger.py [--quick] [--check]

`--quick`: 100,000 old keys in 100 deliveries. `--check`: exit 1 where a look takes 2 s or 200 MiB, or where not exactly
one run was started.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from components.core.claims import Claim, ClaimLog, Ended  # noqa: E402
from components.core.config import Config, TriggerConfig  # noqa: E402
from components.core.contracts import RunArguments  # noqa: E402
from components.core.run_claims import run_arguments  # noqa: E402
from components.core.storage import open_store  # noqa: E402
from components.ingest.deliveries import Deliveries  # noqa: E402
from pipelines.trigger.launcher import RunState  # noqa: E402
from pipelines.trigger.service import Trigger  # noqa: E402
from tests import servers  # noqa: E402

GOAL_SECONDS, GOAL_MIB, SUBMITTERS = 2.0, 200.0, 64
NEW_DELIVERIES, NEW_KEYS = 4, 100
IMAGES_A_DELIVERY = 1000


class Engine:
    """Starts runs as files of a folder, a moment after it was asked; says that they run for ever."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> str | None:
        return next((path.name for path in sorted(self.folder.glob("*")) if path.read_text() == name), None)

    def start(self, name: str, arguments: RunArguments) -> str:
        time.sleep(0.05)
        run_id = uuid.uuid4().hex
        (self.folder / run_id).write_text(name)
        return run_id

    def state(self, run_id: str) -> RunState:
        return "running"


def lay_down(data: Path, deliveries: int) -> None:
    """Put the old files where the server keeps its objects: a million requests would take an hour."""
    for number in range(deliveries):
        folder = data / f"old-{number:05d}"
        folder.mkdir(parents=True)
        for image in range(IMAGES_A_DELIVERY):
            (folder / f"{image:04d}.png").write_bytes(b"x")


def deliver_new(config: Config) -> None:
    """Upload what is new."""
    assert config.trigger.source is not None
    incoming = open_store(config.store.model_copy(update={"uri": config.trigger.source}))
    for number in range(NEW_DELIVERIES):
        for image in range(NEW_KEYS // NEW_DELIVERIES - 1):
            incoming.put(f"new-{number:05d}/{image:04d}.png", b"x")
        incoming.put(f"new-{number:05d}/{config.trigger.marker}", b"")


def file_old_claims(config: Config, old: int) -> None:
    """Say that runs have taken the old deliveries, ten a run."""
    store = open_store(config.store)
    for first in range(0, old, 10):
        taken = tuple(f"{config.trigger.source}/old-{number:05d}" for number in range(first, min(first + 10, old)))
        run_id = f"run-{first}"
        log = ClaimLog(store, config.model)
        claim = log.enter(
            lambda _, taken=taken, run_id=run_id: Claim(
                actor="benchmark", deliveries=taken, arguments=RunArguments(source="new"), run_id=run_id
            )
        )
        assert claim is not None
        log.enter(
            lambda _, claim=claim, run_id=run_id: Ended(
                actor="benchmark", claim=claim.number, run_id=run_id, result="succeeded"
            )
        )


def look(config: Config, engine: Path) -> dict[str, float]:
    """Two looks of a fresh process. `claimed`: deliveries that the first one took."""
    deliveries = Deliveries(config)
    trigger = Trigger(config, open_store(config.store), Engine(engine), lambda state: deliveries.look(state.taken))
    seconds = []
    before = len(trigger.log.read().taken)
    trigger = Trigger(config, open_store(config.store), Engine(engine), lambda state: deliveries.look(state.taken))
    for _ in range(2):
        began = time.monotonic()
        trigger.tick()
        seconds.append(time.monotonic() - began)
    claimed = len(trigger.log.read().taken) - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": seconds[0], "next": seconds[1], "mib": peak, "claimed": claimed}


def list_all(config: Config) -> tuple[float, int]:
    """Seconds of a listing of all keys at the source, and how many there are."""
    store = open_store(config.store.model_copy(update={"uri": config.trigger.source}))
    began = time.monotonic()
    count = sum(1 for _ in store.list_objects())
    return time.monotonic() - began, count


def submit(config: Config, engine: Path, source: str, gate: multiprocessing.synchronize.Barrier) -> None:
    """What one of many submitters does."""
    from pipelines.trigger.commands import submit_to

    trigger = Trigger(config, open_store(config.store), Engine(engine))
    gate.wait()
    submission = submit_to(trigger, run_arguments(config, source), again=False)
    assert submission.status == "running", submission


def race(config: Config, folder: Path) -> tuple[int, int, float]:
    """Let `SUBMITTERS` submit one window at once: runs started, processes that failed, seconds."""
    engine = folder / "raced"
    engine.mkdir()
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(SUBMITTERS)
    arguments = (config.model_copy(update={"model": "raced"}), engine, "0" * 32, gate)
    processes = [context.Process(target=submit, args=arguments) for _ in range(SUBMITTERS)]
    began = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return len(list(engine.glob("*"))), sum(process.exitcode != 0 for process in processes), time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--look", help=argparse.SUPPRESS)  # the fresh process: its configuration
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(Config.model_validate_json(Path(options.look).read_bytes()), Path(options.engine))))
        return
    if not servers.VERSITYGW.exists():
        sys.exit("versitygw is not there: make test-deps")
    with tempfile.TemporaryDirectory(prefix="retrain-trigger-") as name:
        sys.exit(measure(Path(name), old=100 if options.quick else 1000) and options.check)


def measure(folder: Path, old: int) -> bool:
    """Print what was found. Returns whether a goal was missed."""
    with servers.versitygw(folder) as server:
        backend = servers.server_backend(server)
        os.environ |= server.credentials
        store = backend.config
        bucket = store.uri.removeprefix("s3://").partition("/")[0]
        config = Config(
            model="watched",
            store=store,
            trigger=TriggerConfig(source=f"s3://{bucket}/incoming", quiet_minutes=30),
        )
        data = folder / "data" / bucket / "incoming"
        began = time.monotonic()
        lay_down(data, old)
        file_old_claims(config, old)
        print(
            f"{old * IMAGES_A_DELIVERY:,} old keys in {old} deliveries ({time.monotonic() - began:.0f} s)", flush=True
        )
        deliver_new(config)
        engine = folder / "engine"
        engine.mkdir()
        (folder / "config.json").write_text(config.model_dump_json())
        command = [sys.executable, __file__, "--look", str(folder / "config.json"), "--engine", str(engine)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = json.loads(answer.splitlines()[-1])
        seconds, keys = list_all(config)
        started, failed, raced = race(config, folder)
    print(
        f"first look: {found['first']:.2f} s, {found['claimed']} deliveries claimed; next look: {found['next']:.2f} s"
    )
    print(f"peak memory of the process: {found['mib']:.0f} MiB")
    print(f"listing all {keys:,} keys: {seconds:.1f} s")
    print(f"{SUBMITTERS} submitters of one window: {started} run, {failed} failed, {raced:.1f} s")
    slowest = max(found["first"], found["next"])
    print(f"a listing of all keys takes {seconds / slowest:.0f} times as long as the slower look")
    right = (found["claimed"], started, failed) == (NEW_DELIVERIES, 1, 0)
    return not right or slowest >= GOAL_SECONDS or found["mib"] >= GOAL_MIB


if __name__ == "__main__":
    main()
