"""Fifty processes promote at once on one model: is the ledger whole, and was everybody told the truth?

On a directory, on an S3 server behind a proxy that loses 30 % of the exchanges (half of them before the server sees the
request, half after it has acted), and the same with the server killed (SIGKILL) and started again in the middle. A
promoter that gets no answer asks again under the same run id, as a step does whose pod was lost.

    .venv/bin/python benchmarks/race.py [--quick] [--check] [--port PORT]

`--port`: an S3 server on this machine in place of versitygw (`make test-deps`); credentials from the environment. It is
not killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from components.core.config import StoreConfig  # noqa: E402
from components.core.errors import StoreUnreachable  # noqa: E402
from components.core.registry import LostRace, Registry  # noqa: E402
from components.core.storage import open_store  # noqa: E402
from tests import servers  # noqa: E402
from tests.servers import LossyProxy, Server  # noqa: E402

PROMOTERS, DROP_RATE, KILLS, MODEL = 50, 0.3, 3, "raced"
START_SECONDS = 120.0  # fifty processes on a busy machine
GRACE = 120.0  # seconds after the end in which a promoter may still find out what came of its last try


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a promoter was told of one version: `number` of its record, None where it lost. `known` is False where it
    never found out."""

    version: str
    number: int | None = None
    known: bool = True


@dataclass(frozen=True, kw_only=True)
class Course:
    """Where is promoted, for how long, up to how many records; `kill` takes the server down and up again."""

    config: StoreConfig
    seconds: float
    most: int
    credentials: dict[str, str] = field(default_factory=dict)
    kill: Callable[[], None] | None = None


def promote_for(course: Course, barrier: Any, answers: Any) -> None:
    """Promote one version after another, each against the champion of the moment, until time or ledger is full."""
    os.environ.update(course.credentials)  # the process was forked from one that is older than they are
    registry = Registry(open_store(course.config), MODEL)
    told: list[Answer] = []
    barrier.wait()
    deadline = time.time() + course.seconds
    while time.time() < deadline:
        try:
            champion = registry.champion()
        except StoreUnreachable:
            continue
        if champion and champion.number >= course.most:
            break
        told.append(promote(registry, champion.version if champion else None, deadline + GRACE))
    answers.put(told)


def promote(registry: Registry, champion: str | None, deadline: float) -> Answer:
    """Promote one new version, asking again until the store says what came of it."""
    version, run_id = uuid.uuid4().hex, f"run-{uuid.uuid4().hex}"
    while time.time() < deadline:
        try:
            record = registry.append(
                "promotion",
                version,
                expected_champion=champion,
                window=None,
                run_id=run_id,
                actor="benchmark",
                reason="race",
            )
        except LostRace:
            return Answer(version=version)
        except StoreUnreachable:
            continue
        return Answer(version=version, number=record.number)
    return Answer(version=version, known=False)


def race(course: Course) -> list[Answer]:
    """Let all promoters run at once, and gather what they were told."""
    answers, barrier = servers.PROCESSES.SimpleQueue(), servers.PROCESSES.Barrier(PROMOTERS + 1)
    promoters = [
        servers.PROCESSES.Process(target=promote_for, args=(replace(course, kill=None), barrier, answers))
        for _ in range(PROMOTERS)
    ]
    for promoter in promoters:
        promoter.start()
    barrier.wait(START_SECONDS)
    with every(course.seconds / (KILLS + 1), course.kill) if course.kill else nullcontext():
        told = [answer for _ in promoters for answer in answers.get()]
    for promoter in promoters:
        promoter.join()
    return told


def judge(name: str, told: list[Answer], config: StoreConfig) -> int:
    """Compare what was told with the ledger, whose chain and heads are checked. Returns how many answers were wrong."""
    registry = Registry(open_store(config), MODEL)
    registry.verify_ledger()
    ledger = registry.ledger()
    assert ledger, f"{name}: nobody promoted anything, so nothing was shown"
    numbers = {record.version: record.number for record in ledger}
    times = Counter(record.version for record in ledger)
    wrong = {
        "told lost and in": sum(a.known and a.number is None and a.version in numbers for a in told),
        "told done and not in": sum(a.number is not None and numbers.get(a.version) != a.number for a in told),
        "in twice": sum(count > 1 for count in times.values()),
        "in and nobody was told": len(set(numbers) - {a.version for a in told}),
    }
    done, unknown = sum(a.number is not None for a in told), sum(not a.known for a in told)
    print(
        f"{name}: {len(ledger)} records, gapless and chained; told done {done}, lost {len(told) - done - unknown}, "
        f"nothing {unknown}; " + ", ".join(f"{what} {count}" for what, count in wrong.items()),
        flush=True,
    )
    return sum(wrong.values())


@contextmanager
def through_proxy(server: Server) -> Iterator[tuple[StoreConfig, StoreConfig]]:
    """A fresh prefix as the promoters see it, and as it is without faults."""
    os.environ.update(server.credentials)
    backend = servers.server_backend(server)
    proxy = LossyProxy(server.port, DROP_RATE)
    began = time.monotonic()
    try:
        faulty = {"endpoint_url": proxy.endpoint, "max_attempts": 4}
        yield backend.config.model_copy(update=faulty), backend.config
    finally:
        proxy.stop()
        print(f"  {proxy.requests} requests in {time.monotonic() - began:.0f} s, {DROP_RATE:.0%} of them lost")


@contextmanager
def versitygw(folder: Path) -> Iterator[tuple[Server, Callable[[], None]]]:
    """The server, and a call that kills it with SIGKILL and starts it again on the same files and port."""
    server = servers.versitygw_server(servers.free_port())
    (folder / "data").mkdir(parents=True)

    def start() -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                servers.versitygw_command(server, folder), stdout=log, stderr=log, start_new_session=True
            )
        servers.wait_until(lambda: servers.accepts(server.port), "versitygw", folder / "log")
        return process

    running = [start()]

    def kill() -> None:
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        time.sleep(1.0)  # long enough for every promoter to notice
        running[0] = start()

    try:
        yield servers.with_bucket(server), kill
    finally:
        running[0].kill()
        running[0].wait()


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Act `KILLS` times while the block runs."""
    ended = threading.Event()

    def loop() -> None:
        for _ in range(KILLS):
            if ended.wait(seconds):
                return
            act()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def race_server(name: str, server: Server, course: Course) -> int:
    """Race on a server behind the proxy. Returns how many answers were wrong."""
    with through_proxy(server) as (faulty, direct):
        return judge(name, race(replace(course, config=faulty, credentials=server.credentials)), direct)


def given_server(port: int) -> Server:
    """The server of `--port`."""
    return servers.with_bucket(
        Server(
            name="given",
            port=port,
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            has_if_match=True,
            one_winner=True,
        )
    )


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a sixth of the time")
    arguments.add_argument("--check", action="store_true", help="exit 1 unless all that was told is true")
    arguments.add_argument("--port", type=int, help="race the S3 server on this port only")
    options = arguments.parse_args()
    seconds, most = (20.0, 60) if options.quick else (120.0, 300)
    course = Course(config=StoreConfig(uri="nowhere"), seconds=seconds, most=most)
    with tempfile.TemporaryDirectory(prefix="retrain-race-") as folder:
        if options.port:
            wrong = race_server(f"server on port {options.port}, 30 % lost", given_server(options.port), course)
        else:
            local = replace(course, config=StoreConfig(uri=f"{folder}/store"), seconds=seconds / 2)
            wrong = judge("directory", race(local), local.config)
            with versitygw(Path(folder, "server")) as (server, kill):
                wrong += race_server("versitygw, 30 % lost", server, course)
                wrong += race_server(f"versitygw, 30 % lost, killed {KILLS} times", server, replace(course, kill=kill))
    print(f"{wrong} wrong answers about a promotion, with {PROMOTERS} promoters at once")
    return int(options.check and wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
