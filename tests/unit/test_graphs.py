"""Graphs of a version: families of networks, batches of one and three, and graphs that say something else."""

from __future__ import annotations

import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import onnx
import pytest
import torch
import yaml

from components.core.architectures import Normalisation
from components.core.config import load_config
from components.core.errors import BrokenModel, ConfigurationError, IntegrityError
from components.core.models import Classifier, ModelSpec, build_classifier, save_classifier
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from components.ingest.step import ingest
from components.promote import graphs
from components.promote.graphs import check_graph, run_onnx, run_pt2, to_onnx, to_pt2, trace_program
from tests.unit.test_features import deliver
from tests.unit.test_reference import pictures

pytestmark = pytest.mark.usefixtures("one_thread")


def classifier(architecture: str, size: int, channels: int = 3) -> Classifier:
    """Fresh weights, and batch norms that have seen something, so that they do not cancel out."""
    scale = Normalisation(mean=(0.4,) * channels, std=(0.3,) * channels)
    spec = ModelSpec(
        architecture=architecture,
        classes=("cat", "dog", "owl"),
        image_size=size,
        channels=channels,
        mean=scale.mean,
        std=scale.std,
    )
    model = build_classifier(spec, torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # MobileNet's remembers one part in a hundred of what it sees
    with torch.no_grad():
        model.train()(images(8, size, channels))
    return model.eval()


def images(count: int, size: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Noise, each image of a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, channels, size, size, generator=generator)
    return (noise * torch.linspace(255, 40, count).view(-1, 1, 1, 1)).to(torch.uint8)


FAMILIES = [
    ("small-cnn", 16, 1),
    ("resnet18", 32, 3),
    ("mobilenet_v3_small", 64, 3),
    ("vit_b_16", 32, 3),
]


@pytest.mark.parametrize(
    ("architecture", "size", "channels"),
    [pytest.param(*family, marks=[pytest.mark.slow] if family[0] != "small-cnn" else []) for family in FAMILIES],
)
def test_graphs_say_what_the_model_says_for_one_image_and_for_three(architecture: str, size: int, channels: int):
    model = classifier(architecture, size, channels)
    program = trace_program(model)
    three = images(3, size, channels, seed=1)
    for name, predict in (
        ("onnx", run_onnx(to_onnx(program, model, "v"))),
        ("pt2", run_pt2(to_pt2(program))),
    ):
        check_graph(name, predict, model, three)
        for batch in (three[:1], three):
            assert predict(batch).shape == (len(batch), 3)
            assert predict(batch).dtype == torch.float32
    assert not torch.allclose(model(three)[0], model(three)[1]), "a network that says something"


@pytest.fixture(scope="module")
def exported() -> tuple[Classifier, bytes, bytes]:
    """A small network, its ONNX and its archive."""
    model = classifier("small-cnn", 16, 1)
    program = trace_program(model)
    return model, to_onnx(program, model, "v" * 32), to_pt2(program)


def test_same_model_gives_the_same_bytes_and_none_tell_of_this_machine(exported: tuple[Classifier, bytes, bytes]):
    model, first_onnx, first_pt2 = exported
    program = trace_program(model)
    assert to_onnx(program, model, "v" * 32) == first_onnx
    assert to_pt2(program) == first_pt2
    here = str(Path(graphs.__file__).parents[2]).encode()
    archive = zipfile.ZipFile(BytesIO(first_pt2))
    assert here not in b"".join([first_onnx, *map(archive.read, archive.namelist())])


def test_onnx_tells_a_client_all_that_it_must_know(exported: tuple[Classifier, bytes, bytes]):
    model = onnx.load_from_string(exported[1])
    onnx.checker.check_model(model, full_check=True)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["retrain.version"] == "v" * 32
    assert json.loads(told["retrain.classes"]) == ["cat", "dog", "owl"]
    assert told["retrain.input"] == "uint8 in [0, 255], (batch, 1, 16, 16), grey; normalised inside"
    (asked,), (answered,) = model.graph.input, model.graph.output
    assert (asked.name, asked.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in asked.type.tensor_type.shape.dim] == ["batch", 1, 16, 16]
    assert answered.name == "logits"
    assert [d.dim_param or d.dim_value for d in answered.type.tensor_type.shape.dim] == ["batch", 3]


@pytest.mark.parametrize("wrong", [1e-2, float("nan")])
def test_graph_that_says_something_else_is_refused(exported: tuple[Classifier, bytes, bytes], wrong: float):
    model, shown = exported[0], images(4, 16, 1)

    def off(batch: torch.Tensor) -> torch.Tensor:
        logits = model(batch).clone()
        logits[0, 0] += wrong
        return logits

    with pytest.raises(BrokenModel, match=r"model\.onnx and the model differ by"):
        check_graph("model.onnx", off, model, shown)
    check_graph("model.onnx", lambda batch: model(batch) + 1e-6, model, shown)


def test_graph_of_other_weights_is_refused(exported: tuple[Classifier, bytes, bytes]):
    other = classifier("small-cnn", 16, 1)
    with torch.no_grad():
        other.head.weight *= 1.01
    with pytest.raises(BrokenModel, match="differ"):
        check_graph("model.onnx", run_onnx(exported[1]), other, images(4, 16, 1))


def test_network_that_cannot_be_traced_names_the_setting(exported: tuple[Classifier, bytes, bytes]):
    class Undecided(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features if features.sum() > 0 else -features

    model = classifier("small-cnn", 16, 1)
    model.body.append(Undecided())
    with pytest.raises(ConfigurationError, match=r"promotion\.exports: small-cnn cannot be exported"):
        trace_program(model)


def test_more_weights_than_onnx_takes_are_refused_before_the_work(
    exported: tuple[Classifier, bytes, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(graphs, "ONNX_BYTES", 1000)
    with pytest.raises(ConfigurationError, match="ONNX takes 1000"):
        to_onnx(None, exported[0], "v")


def test_graphs_of_a_version_are_checked_on_held_out_images_of_the_window(tmp_path: Path):
    path = tmp_path / "retrain.yaml"
    written = {"store": {"uri": "store", "cache": "cache"}, "ingest": {"workers": 1, "holdout_fraction": 0.5}}
    path.write_text(yaml.safe_dump({**written, "promotion": {"exports": ["onnx"]}}))
    config = load_config(path)
    store = DirectoryStore(tmp_path / "store")
    window = ingest(store, config, deliver(tmp_path / "pictures", *pictures(30, 1)))
    registry = Registry(store, config.model)
    version = registry.save_version(save_classifier(classifier("small-cnn", 8)))
    (name,) = files = graphs.export_graphs(registry, version, config, window.id)
    assert name == "model.onnx"
    assert run_onnx(files[name])(images(3, 8)).shape == (3, 3)
    shard = next((tmp_path / "store").glob("datasets/*/windows/*/images-*.tar"))
    shard.write_bytes(bytes(shard.stat().st_size))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(IntegrityError, match="images-"):
        graphs.export_graphs(registry, version, config, window.id)
