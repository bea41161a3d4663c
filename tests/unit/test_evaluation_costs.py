"""What models cost: bytes and operations by hand and against torch's counter, seconds against a clock of our own."""

import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from components.core.models import Classifier, ModelSpec, build_classifier, save_classifier
from components.evaluate.costs import WARM_UP, count_flops, measure_costs

pytestmark = pytest.mark.usefixtures("one_thread")


def model(architecture: str = "small-cnn", size: int = 16, channels: int = 1) -> Classifier:
    grey = (0.5,) * channels
    spec = ModelSpec(
        architecture=architecture, classes=("a", "b", "c"), image_size=size, channels=channels, mean=grey, std=grey
    )
    return build_classifier(spec, torch.Generator().manual_seed(0)).eval()


class Clock:
    """Each reading is one second later than the one before."""

    def __init__(self) -> None:
        self.readings = count()

    def __call__(self) -> float:
        return float(next(self.readings))


def test_operations_of_the_small_network_by_hand() -> None:
    # Twice the outputs times the inputs of each: side, channels, inputs of every convolution; then the head.
    first, middle = [(16, 16, 9)], [(8, 32, 16 * 9), (8, 32, 32 * 9), (8, 32, 16)]
    convolutions = [*first, *middle, (4, 64, 32 * 9), (4, 64, 64 * 9), (4, 64, 32)]
    expected = 2 * (sum(side**2 * outputs * inputs for side, outputs, inputs in convolutions) + 64 * 3)
    assert count_flops(model()) == expected


@pytest.mark.parametrize(("architecture", "size"), [("resnet18", 64), ("mobilenet_v3_small", 64), ("swin_t", 64)])
def test_operations_are_those_that_torch_counts(architecture: str, size: int) -> None:
    network = model(architecture, size, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert count_flops(network) == counter.get_total_flops() > 0


def test_attention_of_a_vision_transformer_is_counted() -> None:
    network = model("vit_b_16", 32, 3)
    fast = torch.backends.mha.get_fastpath_enabled()
    with FlopCounterMode(display=False) as counter:  # with gradients, attention is not done in one piece
        network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert count_flops(network) == counter.get_total_flops()
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_counting_does_not_import_the_compiler() -> None:
    code = (
        "import sys; from tests.unit.test_evaluation_costs import model, count_flops; "
        "print(count_flops(model()), 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == [str(count_flops(model())), "False"]


def test_what_has_no_formula_is_not_known() -> None:
    class Zero(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    network = model()
    network.body, network.head = Zero(), torch.nn.Identity()  # type: ignore[assignment]
    network.head.weight = torch.empty(0)  # type: ignore[assignment]
    assert count_flops(network) is None


def test_bytes_are_those_of_the_weights() -> None:
    network = model()
    (cost,) = measure_costs([network], 0)
    assert cost.bytes == sum(tensor.nbytes for tensor in network.state_dict().values())
    assert 0 < len(save_classifier(network)["model.safetensors"]) - cost.bytes < 5000  # its header
    assert (cost.latency, cost.flops) == ({}, count_flops(network))


def test_seconds_are_quantiles_of_repeats_after_a_warm_up() -> None:
    first, second = model(), model()
    turns: list[str] = []
    first.register_forward_hook(lambda *_: turns.append("first"))
    second.register_forward_hook(lambda *_: turns.append("second"))
    clock = Clock()
    one, two = measure_costs([first, second], 3, clock)
    counting = ["first", "second"]  # at the end, the operations of each
    assert turns == ["first", "second"] * (3 + WARM_UP) + counting
    assert one.latency == two.latency == {"0.5": 1.0, "0.95": 1.0, "0.99": 1.0}


def test_slow_images_are_in_the_upper_quantiles() -> None:
    seconds = [*[0.0] * WARM_UP, *np.arange(101).tolist()]
    readings = iter([reading for took in seconds for reading in (0.0, float(took))])
    (cost,) = measure_costs([model()], 101, lambda: next(readings))
    assert cost.latency == pytest.approx({"0.5": 50, "0.95": 95, "0.99": 99})


def test_the_larger_network_takes_longer() -> None:
    small, large = measure_costs([model(), model("resnet18", 64, 1)], 5)
    assert large.latency["0.5"] > small.latency["0.5"] > 0
    assert large.bytes > 100 * small.bytes
    assert small.device
