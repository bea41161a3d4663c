"""A version as graphs that servers load without this package: ONNX and torch.export, checked before they are filed.

Input `images`: uint8, (batch, channels, size, size), any batch from 1; what the product itself shows its models, so
there is no scale to get wrong. Normalisation is part of the graph. Output `logits`: float32, (batch, classes).
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from components.core.config import Config
from components.core.datasets import PixelCache, load_images
from components.core.errors import BrokenModel, ConfigurationError
from components.core.models import Classifier, load_classifier
from components.core.registry import Registry
from components.core.windows import Window

ONNX, PT2 = "model.onnx", "model.pt2"
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4
"""Most that a probability may differ from torch's. Other kernels add float32 in another order: 1e-6 was seen with the
networks of the tests, so a hundred times that is no rounding any more."""
CHECKED_IMAGES = 8
ONNX_BYTES = 2**31  # protobuf's limit for one message

Predict = Callable[[Tensor], Tensor]


def export_graphs(registry: Registry, version: str, config: Config, window: str) -> dict[str, bytes]:
    """Export a version as the configuration asks, each graph checked on held-out images of a window.

    Returns:
        Name of the file to content. The same version gives the same bytes.

    Raises:
        BrokenModel: A graph does not say what the model says.
        ConfigurationError: The architecture cannot be exported so.
        IntegrityError: Files of the version or images are not what was written.
    """
    model = load_classifier(registry, version)
    images = _held_out(registry, config, window, model)
    program = trace_program(model)
    files = {}
    if "onnx" in config.promotion.exports:
        files[ONNX] = to_onnx(program, model, version)
        check_graph(ONNX, run_onnx(files[ONNX]), model, images)
    if "torch.export" in config.promotion.exports:
        files[PT2] = to_pt2(program)
        check_graph(PT2, run_pt2(files[PT2]), model, images)
    return files


def trace_program(model: Classifier) -> Any:
    """Trace a classifier in evaluation mode, on the CPU, for any number of images.

    Raises:
        ConfigurationError: It cannot be traced.
    """
    spec = model.spec
    example = torch.zeros(
        2, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8
    )  # 1 would be a constant
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.export(model.cpu().eval(), (example,), dynamic_shapes={INPUT: {0: batch}})
    except Exception as error:  # the tracer has no common base of errors
        raise _not_exported(spec.architecture, error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine; without them the bytes are the same everywhere
    return program


def to_onnx(program: Any, model: Classifier, version: str) -> bytes:
    """Write a traced program as ONNX, with what a client must know in its metadata.

    Raises:
        ConfigurationError: It has an operation that ONNX lacks, or more weights than one file takes.
    """
    import onnx

    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    if weights >= ONNX_BYTES:
        raise _not_exported(model.spec.architecture, ValueError(f"{weights} bytes of weights, ONNX takes {ONNX_BYTES}"))
    try:
        with warnings.catch_warnings(action="ignore"):
            exported = torch.onnx.export(
                program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], external_data=False, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise _not_exported(model.spec.architecture, error) from error
    assert exported is not None
    graph = exported.model_proto
    _forget_the_source(graph.graph)
    spec = model.spec
    properties = {
        "retrain.version": version,
        "retrain.input": f"uint8 in [0, 255], (batch, {spec.channels}, {spec.image_size}, {spec.image_size}), "
        f"{'RGB' if spec.channels == 3 else 'grey'}; normalised inside",
        "retrain.output": "logits, float32, (batch, classes)",
        "retrain.classes": json.dumps(spec.classes),
    }
    onnx.helper.set_model_props(graph, properties)
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _forget_the_source(graph: Any) -> None:
    """Drop what the exporter notes of our Python code, and call the first axis what it is."""
    for entry in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del entry.metadata_props[:]
    (symbol,) = {value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == symbol:
                axis.dim_param = "batch"


def to_pt2(program: Any) -> bytes:
    """Write a traced program as torch.export's archive."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def run_onnx(data: bytes) -> Predict:
    """Load ONNX into onnxruntime on the CPU; images to logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def run_pt2(data: bytes) -> Predict:
    """Load a torch.export archive that this process has written; images to logits.

    Of no other: torch falls back to an unrestricted pickle for what it cannot read without (seen in torch 2.15).
    """
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda images: module(images)


@torch.inference_mode()
def check_graph(name: str, predict: Predict, model: Classifier, images: Tensor) -> None:
    """Compare a graph with the model, one image alone and all together.

    Args:
        name: Of the file, for the message.
        images: uint8, (n, channels, size, size), n >= 1.

    Raises:
        BrokenModel: A probability differs by more than TOLERANCE, or is none.
    """
    for batch in (images[:1], images):
        apart = (predict(batch).softmax(1) - model(batch).softmax(1)).abs().max().item()
        if not apart <= TOLERANCE:  # NaN is not
            raise BrokenModel(
                f"{name} and the model differ by {apart:.2g} in a probability",
                expected=f"at most {TOLERANCE} on held-out images",
                next_command=f"leave it out of promotion.exports, and report {model.spec.architecture} as a bug",
            )


def _held_out(registry: Registry, config: Config, window: str, model: Classifier) -> Tensor:
    opened = Window.open(registry.store, config.dataset, window)
    wanted = opened.rows("holdout", ("sha256",))["sha256"].to_pylist()[:CHECKED_IMAGES]
    cache = PixelCache(config.store)
    found = load_images([opened], "holdout", model.spec, model.spec.classes, cache, only=set(wanted))
    return found.images[torch.arange(len(found))]


def _not_exported(architecture: str, error: Exception) -> ConfigurationError:
    reason = str(error).strip().partition("\n")[0]
    return ConfigurationError(
        f"promotion.exports: {architecture} cannot be exported: {reason}",
        expected="a network that torch.export traces and ONNX has the operations of",
        next_command="leave that format out of promotion.exports, and run the step again",
    )
