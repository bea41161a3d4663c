"""The kernel two-sample test against those of its peers, on the same arrays: time, and memory beyond the arrays.

Peers get virtual environments of their own under .tools/peers, made here from the locks in benchmarks/peers (the first
time several GB, most of it torch); one that cannot be installed is skipped by name. Every tool is a process with two
threads; short tests are repeated in turn and the median counts. Goals are of the time on the clock; on a busy machine
look at the column "cores", the processor time of all threads. Where a peer would take too long, its time comes from
fewer permutations, linearly, and is marked `*`; a peer that would need more memory than there is does not run.

    .venv/bin/python benchmarks/drift.py [--quick] [--check]

Goals of --check: `check_full` and `check_quick`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peers.environments import ToolFailed, ToolProcess, python_of

PEERS = ("alibi-detect", "torchdrift", "evidently", "hyppo", "goodpoints")
APPROXIMATE = ("goodpoints",)  # tests on a part of the rows that it chooses well
THREADS = 2  # of every tool
WIDTH = 512  # of the features, d
SHIFT = 0.05  # of the mean of every feature in the moved sample, in standard deviations
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is measured, and how much time it may take."""

    sizes: tuple[int, ...]
    permutations: tuple[int, ...]
    longest_seconds: float
    """A run expected to take longer is extrapolated from `probes`."""
    repeat_seconds: float
    """A cell is measured again while its runs took less than this together."""
    probes: tuple[int, int]
    """Numbers of permutations to extrapolate from."""


FULL = Effort(
    sizes=(500, 2_000, 10_000), permutations=(100, 1_000), longest_seconds=150, repeat_seconds=10, probes=(5, 15)
)
QUICK = Effort(sizes=(500, 2_000), permutations=(100,), longest_seconds=20, repeat_seconds=2, probes=(2, 6))
MOST_REPEATS = 5
LARGEST = 100_000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Time and memory of one test; `estimated` where it was not run in full."""

    seconds: float
    core_seconds: float
    extra_bytes: int
    estimated: bool = False


@dataclass
class Tool:
    """One tool's process and what was measured with it. `runs` and the other tables are keyed by rows a side and
    permutations; `failed` holds the reason for cells that have no figures."""

    name: str
    process: ToolProcess
    runs: dict[tuple[int, int], list[Cell]] = field(default_factory=dict)
    failed: dict[tuple[int, int], str] = field(default_factory=dict)
    verdicts: dict[str, Any] = field(default_factory=dict)

    def run(self, rows: int, permutations: int, limit_seconds: float) -> None:
        """Run one test on the moved rows and keep its figures.

        Raises:
            ToolFailed: No figures.
        """
        answer = self.ask(rows, permutations, limit_seconds, "moved")
        cell = Cell(
            seconds=answer["seconds"], core_seconds=answer["core_seconds"], extra_bytes=max(answer["extra_bytes"], 1)
        )
        self.runs.setdefault((rows, permutations), []).append(cell)

    def ask(self, rows: int, permutations: int, limit_seconds: float, current: str) -> dict[str, Any]:
        """Run one test.

        Raises:
            ToolFailed: It did not end well; the process is ready for other requests all the same.
        """
        request = {"rows": rows, "permutations": permutations, "current": current}
        return self.process.ask(request, limit_seconds)

    def cell(self, rows: int, permutations: int) -> Cell | None:
        """Medians of the runs of a cell; else times from the line through other runs, and the most memory of those."""
        runs = self.runs.get((rows, permutations))
        if runs:
            return Cell(
                seconds=statistics.median(run.seconds for run in runs),
                core_seconds=statistics.median(run.core_seconds for run in runs),
                extra_bytes=int(statistics.median(run.extra_bytes for run in runs)),
            )
        others = sorted(b for n, b in self.runs if n == rows)
        if len(others) < 2 or (rows, permutations) in self.failed:
            return None
        low, high = self.cell(rows, others[0]), self.cell(rows, others[-1])
        assert low is not None
        assert high is not None
        more = (permutations - others[-1]) / (others[-1] - others[0])
        return Cell(
            seconds=high.seconds + more * max(high.seconds - low.seconds, 0.0),
            core_seconds=high.core_seconds + more * max(high.core_seconds - low.core_seconds, 0.0),
            extra_bytes=max(low.extra_bytes, high.extra_bytes),
            estimated=True,
        )

    def expected(self, rows: int, permutations: int) -> tuple[float, int] | None:
        """Seconds and bytes, the worst to expect from smaller runs: quadratic in the rows, linear in permutations."""
        known = [(n, b) for n, b in self.runs if n <= rows and b <= permutations]
        if not known:
            return None
        n, b = max(known)
        cell = self.cell(n, b)
        assert cell is not None
        square = (rows / n) ** 2
        # Memory of one size varies several times over between runs, by what the process kept from the ones before.
        least = min(run.extra_bytes for (size, _), runs in self.runs.items() if size == n for run in runs)
        return cell.seconds * square * permutations / b, int(least * square)


def write_arrays(folder: Path, rows: int) -> None:
    """Standard normal rows, twice, and once with a small shift of the mean."""
    rng = np.random.default_rng(0)
    for name, shift in (("reference", 0.0), ("same", 0.0), ("moved", SHIFT)):
        np.save(folder / f"{name}.npy", rng.standard_normal((rows, WIDTH), dtype=np.float32) + np.float32(shift))


@contextmanager
def started(folder: Path) -> Iterator[list[Tool]]:
    """Start all tools that there are; name the others with the reason."""
    pythons = dict.fromkeys(("ours", "product"), Path(sys.executable))
    for peer in PEERS:
        try:
            pythons[peer] = python_of(peer)
        except ToolFailed as error:
            print(f"skipped: {peer}: {error}")
    tools = [
        Tool(name, ToolProcess(python, "measure.py", (name, str(folder)), threads=THREADS))
        for name, python in pythons.items()
    ]
    for tool in tools:
        tool.process.start()
    ready = []
    try:
        for tool in tools:
            try:
                tool.process.wait_until_ready()
                ready.append(tool)
            except ToolFailed as error:
                print(f"skipped: {tool.name}: {error}")
        yield ready
    finally:
        for tool in tools:
            tool.process.stop()


def measure(tools: list[Tool], effort: Effort, rows: int, permutations: int) -> None:
    """Measure one cell of the grid with every tool, those that take little time several times in turn."""
    for turn in range(MOST_REPEATS):
        for tool in tools:
            key = (rows, permutations)
            spent = sum(run.seconds for run in tool.runs.get(key, []))
            if key in tool.failed or (turn and (key not in tool.runs or spent > effort.repeat_seconds)):
                continue
            try:
                measure_once(tool, effort, rows, permutations)
            except ToolFailed as error:
                tool.failed[key] = str(error)


def measure_once(tool: Tool, effort: Effort, rows: int, permutations: int) -> None:
    seconds, extra_bytes = tool.expected(rows, permutations) or (0.0, 0)
    limit = 4 * effort.longest_seconds
    if extra_bytes > 0.8 * available_bytes():
        raise ToolFailed(f"would take {size(extra_bytes)} of memory")
    if seconds <= effort.longest_seconds:
        tool.run(rows, permutations, limit)
        return
    for probe in effort.probes:
        if (rows, probe) not in tool.runs:
            tool.run(rows, probe, limit)
    cell = tool.cell(rows, permutations)
    if cell is not None and cell.estimated and cell.seconds <= effort.longest_seconds:
        tool.run(rows, permutations, limit)


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / MIB:.0f} MiB"


def duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def times(ratio: float) -> str:
    return f"{ratio:,.0f} x" if ratio >= 10 else f"{ratio:.2f} x"


def print_table(tools: list[Tool], rows: int, permutations: int) -> None:
    """Time, processor time of all threads and memory of every tool, each relative to ours."""
    print(f"\nn = {rows:,} a side, d = {WIDTH}, B = {permutations:,} permutations")
    print(f"  {'':<22}{'time':>12}{'of ours':>10}{'cores':>12}{'of ours':>10}{'memory':>12}{'of ours':>10}")
    ours = tools[0].cell(rows, permutations)
    for tool in tools:
        cell = tool.cell(rows, permutations)
        name = {"product": "one matrix product", "goodpoints": "goodpoints CTT"}.get(tool.name, tool.name)
        if cell is None or ours is None:
            print(f"  {name:<22}{tool.failed.get((rows, permutations), 'not measured')}")
            continue
        mark = "*" if cell.estimated else ""
        columns = (
            (duration(cell.seconds) + mark, cell.seconds / ours.seconds),
            (duration(cell.core_seconds) + mark, cell.core_seconds / ours.core_seconds),
            (size(cell.extra_bytes), cell.extra_bytes / ours.extra_bytes),
        )
        print(f"  {name:<22}" + "".join(f"{text:>12}{times(relative):>10}" for text, relative in columns))


def measure_verdicts(tools: list[Tool]) -> None:
    """Print what every tool says of the same distribution and of a moved one, so that all are seen to do one job."""
    rows, permutations = FULL.sizes[0], FULL.permutations[0]
    print(f"\np-values, n = {rows} a side, B = {permutations}; moved: every mean by {SHIFT} standard deviations")
    print(f"  {'':<22}{'same':>12}{'moved':>12}")
    for tool in tools:
        if tool.name == "product" or (rows, permutations) in tool.failed:
            continue
        for current in ("same", "moved"):
            try:
                tool.verdicts[current] = tool.ask(rows, permutations, FULL.longest_seconds, current)["verdict"]
            except ToolFailed as error:
                tool.verdicts[current] = str(error)
        print(f"  {tool.name:<22}{word(tool.verdicts['same']):>12}{word(tool.verdicts['moved']):>12}")


def word(verdict: float | bool | str) -> str:
    if isinstance(verdict, bool):
        return "drift" if verdict else "no drift"
    return f"{verdict:.3f}" if isinstance(verdict, float) else verdict


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`value` is None where the tool compared with was not measured: then nothing is met or missed."""

    text: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def missed(self) -> bool:
        return self.value is not None and (self.value < self.bound if self.at_least else self.value > self.bound)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.text}: not measured"
        sign = ">=" if self.at_least else "<="
        return f"{self.text}: {self.value:,.3g} ({sign} {self.bound:,.4g}{', MISSED' if self.missed else ''})"


def ratio(tools: list[Tool], peer: str, key: tuple[int, int], what: str) -> float | None:
    """How many times as much as ours a peer takes of `what`, "seconds" or "extra_bytes"."""
    cells = {tool.name: tool.cell(*key) for tool in tools if tool.name in ("ours", peer)}
    if cells.get("ours") is None or cells.get(peer) is None:
        return None
    return float(getattr(cells[peer], what) / getattr(cells["ours"], what))


def check_full(tools: list[Tool]) -> list[Goal]:
    few, many = (10_000, 100), (10_000, 1_000)
    product = ratio(tools, "product", many, "seconds")
    at = "at n = 10,000, B ="
    return [
        goal(f"alibi-detect's time {at} 100", ratio(tools, "alibi-detect", few, "seconds"), 40),
        goal(f"alibi-detect's time {at} 1,000", ratio(tools, "alibi-detect", many, "seconds"), 1_000),
        goal(f"alibi-detect's memory {at} 1,000", ratio(tools, "alibi-detect", many, "extra_bytes"), 40),
        goal(f"goodpoints CTT's time {at} 1,000", ratio(tools, "goodpoints", many, "seconds"), 10),
        Goal(
            text=f"our time in matrix products {at} 1,000",
            value=None if product is None else 1 / product,
            bound=1.2,
            at_least=False,
        ),
        check_largest(tools[0]),
        *check_verdicts(tools[0]),
    ]


def check_largest(ours: Tool) -> Goal:
    cell = ours.cell(LARGEST, 1_000)
    used = float("inf") if cell is None else cell.extra_bytes / MIB
    return Goal(text=f"our memory at n = {LARGEST:,} in MiB", value=used, bound=1024, at_least=False)


def check_quick(tools: list[Tool]) -> list[Goal]:
    """Faster than every peer and, where the size shows it, leaner than those that keep every row."""
    key = (2_000, 100)
    peers = [tool.name for tool in tools if tool.name in PEERS]
    exact = [peer for peer in peers if peer not in APPROXIMATE]
    return [
        *(goal(f"{peer}'s time at n = 2,000, B = 100", ratio(tools, peer, key, "seconds"), 1) for peer in peers),
        *(goal(f"{peer}'s memory at n = 2,000, B = 100", ratio(tools, peer, key, "extra_bytes"), 1) for peer in exact),
        *check_verdicts(tools[0]),
    ]


def check_verdicts(ours: Tool) -> list[Goal]:
    return [
        Goal(text="our p-value, same", value=ours.verdicts.get("same"), bound=0.01, at_least=True),
        Goal(text="our p-value, moved", value=ours.verdicts.get("moved"), bound=0.05, at_least=False),
    ]


def goal(text: str, value: float | None, bound: float) -> Goal:
    return Goal(text=f"{text}, times ours", value=value, bound=bound, at_least=True)


def measure_largest(ours: Tool) -> None:
    """Ours alone, at a size where one matrix of the pooled rows would take 160 GB."""
    began = time.monotonic()
    try:
        ours.run(LARGEST, 1_000, limit_seconds=1_800)
    except ToolFailed as error:
        print(f"\nn = {LARGEST:,} a side, B = 1,000, ours: {error} after {time.monotonic() - began:.0f} s")
        return
    cell = ours.cell(LARGEST, 1_000)
    assert cell is not None
    print(f"\nn = {LARGEST:,} a side, B = 1,000, ours: {duration(cell.seconds)}, {size(cell.extra_bytes)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="n = 500 and 2,000, 100 permutations: two minutes")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="retrain-drift-") as name:
        write_arrays(Path(name), max(effort.sizes) if arguments.quick else LARGEST)
        with started(Path(name)) as tools:
            if not tools or tools[0].name != "ours":
                sys.exit("there is nothing to compare with the peers")
            for rows in effort.sizes:
                for permutations in effort.permutations:
                    measure(tools, effort, rows, permutations)
                    print_table(tools, rows, permutations)
            if not arguments.quick:
                measure_largest(tools[0])
            measure_verdicts(tools)
    print("\n* from fewer permutations, linearly\n")
    goals = check_quick(tools) if arguments.quick else check_full(tools)
    print("\n".join(map(str, goals)))
    compared = any(tool.name in PEERS for tool in tools)
    if arguments.check and (not compared or any(goal.missed for goal in goals)):
        sys.exit(1)


if __name__ == "__main__":
    main()
