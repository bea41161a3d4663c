"""One tool in a process of its own: `benchmarks/drift.py` starts it with the Python of the tool's environment.

It reads requests from standard input, one a line, and answers on standard output, both in JSON. Outside the functions
that load a tool there is only the standard library and numpy, because the environments share nothing else. Linux only:
the peak of the memory comes from /proc.

    python measure.py TOOL FOLDER      # FOLDER holds reference.npy, same.npy and moved.npy, float32, shape (rows, d)
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = int(os.environ["OMP_NUM_THREADS"])
SEED = 0
# "g", which has no default. At n = 10,000 a side and a mean shift of 0.02 the statistic was 3.9, 8.6 and 10.3 standard
# deviations above its permutations at g = 2, 3 and 4, for 0.7, 2.5 and 8.6 seconds: at 4 every row read counts.
CTT_LEVEL = 4

Prepare = Callable[[np.ndarray, np.ndarray], Any]
Test = Callable[[Any, int], "float | bool | None"]


def load_ours() -> tuple[Prepare, Test]:
    import torch

    from components.detect_drift.combination import two_sample_test
    from components.detect_drift.detectors import KernelDetector
    from components.detect_drift.relabelling import Sample

    def prepare(reference: np.ndarray, current: np.ndarray) -> Any:
        return [Sample({"embeddings": torch.from_numpy(rows)}) for rows in (reference, current)]

    def test(samples: Any, permutations: int) -> float:
        generator = torch.Generator().manual_seed(SEED)
        detectors = [KernelDetector("embeddings")]
        return float(two_sample_test(detectors, *samples, permutations=permutations, generator=generator).p_value)

    torch.set_num_threads(THREADS)
    return prepare, test


def load_product() -> tuple[Prepare, Test]:
    """The matrix product that every exact test contains, of the pooled rows with themselves; no test at all."""
    import torch

    def prepare(reference: np.ndarray, current: np.ndarray) -> Any:
        return torch.from_numpy(np.concatenate([reference, current]))

    def test(pooled: Any, permutations: int) -> None:
        pooled @ pooled.T

    torch.set_num_threads(THREADS)
    return prepare, test


def load_alibi_detect() -> tuple[Prepare, Test]:
    import torch
    from alibi_detect.cd import MMDDrift

    def test(rows: Any, permutations: int) -> float:
        torch.manual_seed(SEED)
        detector = MMDDrift(rows[0], backend="pytorch", device="cpu", n_permutations=permutations)
        return float(detector.predict(rows[1])["data"]["p_val"])

    torch.set_num_threads(THREADS)
    return as_they_are, test


def load_torchdrift() -> tuple[Prepare, Test]:
    import torch
    from torchdrift.detectors.mmd import kernel_mmd

    def prepare(reference: np.ndarray, current: np.ndarray) -> Any:
        return torch.from_numpy(reference), torch.from_numpy(current)

    def test(rows: Any, permutations: int) -> float:
        torch.manual_seed(SEED)
        return float(kernel_mmd(*rows, n_perm=permutations)[1])

    torch.set_num_threads(THREADS)
    return prepare, test


def load_evidently() -> tuple[Prepare, Test]:
    """It tells whether there is drift, not a p-value. The number of resamples is a constant of its module, and the
    quantile is given because the default, 0.05, calls nearly everything drift.
    """
    import pandas as pd
    from evidently.legacy.metrics.data_drift import embedding_drift_methods as methods

    def prepare(reference: np.ndarray, current: np.ndarray) -> Any:
        return pd.DataFrame(reference), pd.DataFrame(current)

    def test(frames: Any, permutations: int) -> bool:
        methods.N_BOOTSTRAP = permutations
        reference, current = frames
        return bool(methods.mmd(bootstrap=True, quantile_probability=0.95)(current, reference)[1])

    return prepare, test


def load_hyppo() -> tuple[Prepare, Test]:
    from hyppo.ksample import MMD

    def test(rows: Any, permutations: int) -> float:
        np.random.seed(SEED)  # hyppo draws from the global state
        # auto would permute nothing; workers would be processes, whose memory is not this one's
        return float(MMD().test(*rows, reps=permutations, auto=False, workers=1)[1])

    return as_they_are, test


def load_goodpoints() -> tuple[Prepare, Test]:
    """Compress Then Test, approximate. It gets its bandwidth for nothing; the other tools look for theirs."""
    from goodpoints import ctt

    def prepare(reference: np.ndarray, current: np.ndarray) -> Any:
        return reference.astype(np.float64), current.astype(np.float64)

    def test(rows: Any, permutations: int) -> float:
        bandwidth = (2 * rows[0].shape[1]) ** 0.5  # the median distance of standard normal rows
        result = ctt.ctt(*rows, CTT_LEVEL, B=permutations, lam=bandwidth, null_seed=SEED, statistic_seed=SEED)
        return float((result.estimator_values >= result.statistic_values).mean())  # the observed one is among them

    return prepare, test


TOOLS: dict[str, Callable[[], tuple[Prepare, Test]]] = {
    "ours": load_ours,
    "product": load_product,
    "alibi-detect": load_alibi_detect,
    "torchdrift": load_torchdrift,
    "evidently": load_evidently,
    "hyppo": load_hyppo,
    "goodpoints": load_goodpoints,
}


def as_they_are(reference: np.ndarray, current: np.ndarray) -> Any:
    return reference, current


def resident_bytes(field: str) -> int:
    """`VmRSS`, what this process holds now, or `VmHWM`, the most since the peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(test: Test, data: Any, permutations: int) -> dict[str, Any]:
    """Run one test. `extra_bytes` is the peak during the test above what the process held before it,
    `core_seconds` the processor time of all threads: what to compare on a busy machine.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests left would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; see proc(5)
    before = resident_bytes("VmRSS")
    began, worked = time.monotonic(), time.process_time()
    verdict = test(data, permutations)
    seconds, core_seconds = time.monotonic() - began, time.process_time() - worked
    extra = resident_bytes("VmHWM") - before
    return {"seconds": seconds, "core_seconds": core_seconds, "extra_bytes": extra, "verdict": verdict}


def serve(tool: str, folder: Path) -> None:
    """Answer requests until standard input ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the benchmark
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a tool prints goes elsewhere

    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        prepare, test = TOOLS[tool]()
        tiny = [np.load(folder / f"{name}.npy", mmap_mode="r")[:32].copy() for name in ("reference", "moved")]
        for _ in range(3):  # torch's compiler for alibi-detect works in the first two
            measure(test, prepare(*tiny), 5)
    except Exception as error:  # noqa: BLE001 - told to who asks, who goes on without this tool
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        names = ("reference", request["current"])
        rows = [np.load(folder / f"{name}.npy", mmap_mode="r")[: request["rows"]].copy() for name in names]
        try:
            answer(measure(test, prepare(*rows), request["permutations"]))
        except Exception as error:  # noqa: BLE001 - as above
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
