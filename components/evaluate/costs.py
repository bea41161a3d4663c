"""What models cost in use: bytes, operations, the time of one image. Not covered: what training costs (`decide`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.core.contracts import ModelCost
from components.core.models import Classifier, best_device

WARM_UP = 5  # images before the clock runs: the first ones pay for memory and the choice of kernels
QUANTILES = (0.5, 0.95, 0.99)


def measure_costs(
    models: Sequence[Classifier], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[ModelCost]:
    """Measure models side by side.

    Args:
        models: Any; they are moved to the best device.
        repeats: Single images that each answers against the clock, the models taking turns, so that whatever else the
            machine does slows down all of them. 0: no latency.
        clock: Seconds.
    """
    device = best_device()
    models = [model.to(device).eval() for model in models]
    seconds = time_images(models, repeats, clock)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return [
        ModelCost(
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
            flops=count_flops(model),
            turns=tuple(times),
            latency={str(q): float(np.quantile(times, q)) for q in QUANTILES if times},
            device=name,
        )
        for model, times in zip(models, seconds, strict=True)
    ]


@torch.inference_mode()
def time_images(models: Sequence[Classifier], repeats: int, clock: Callable[[], float]) -> list[list[float]]:
    """Seconds from an image in memory to its logits in memory, one by one, for each model."""
    images = [_image(model, torch.device("cpu")) for model in models]
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + WARM_UP if repeats else 0):
        for model, image, times in zip(models, images, seconds, strict=True):
            start = clock()
            model(image.to(model.head.weight.device)).cpu()
            took = clock() - start
            if turn >= WARM_UP:
                times.append(took)
    return seconds


def count_flops(model: Classifier) -> int | None:
    """Count the floating-point operations that one image takes; None where torch has no formula for any of them.

    A multiplication and an addition are two. Convolutions, matrix products and attention count, as in torch's
    `FlopCounterMode`, whose formulas these are.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a vision transformer's attention in one piece has no formula
    try:
        with torch.no_grad(), _Counter() as counter:
            model(_image(model, model.head.weight.device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.flops or None


class _Counter(TorchDispatchMode):
    """Adds up the formulas of what runs. `FlopCounterMode` itself imports torch's compiler: two seconds in each pod."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self.flops, self._formulas = 0, flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what imports the compiler

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _image(model: Classifier, device: torch.device) -> Tensor:
    """A grey image, uint8 (1, channels, size, size)."""
    side = model.spec.image_size
    return torch.full((1, model.spec.channels, side, side), 128, dtype=torch.uint8, device=device)
