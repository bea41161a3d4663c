"""A promotion with all its evidence, on the command line: run, verify, export, verify what was exported, use it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.pipeline.conftest import retrain, write_config, write_digits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key pair, and a store with a champion whose evidence has both graphs and a signature."""
    folder = tmp_path_factory.mktemp("signed")
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / "key.pem"], check=True
    )
    subprocess.run(
        ["openssl", "ec", "-in", folder / "key.pem", "-pubout", "-out", folder / "key.pub"],
        check=True,
        capture_output=True,
    )
    config = write_config(folder, {"promotion": {"exports": ["onnx", "torch.export"], "signing_key": "key.pem"}})
    write_digits(folder / "first", (0, 1, 2), 0, 200)
    done = retrain("run", folder / "first", "--config", config, "--json")
    assert json.loads(done.stdout)["outcome"] == "promoted", done.stderr
    return folder


def test_promotion_is_verified_by_a_stranger_who_has_a_folder_and_a_key(signed: Path, tmp_path: Path):
    config, bundle = signed / "retrain.yaml", tmp_path / "bundle"
    told = retrain("verify", "--config", config, "--key", signed / "key.pub")
    assert (told.returncode, "signed with" in told.stdout) == (0, True), told.stderr
    assert retrain("export", "--bundle", bundle, "--config", config).returncode == 0
    assert retrain("verify", bundle, "--key", signed / "key.pub").returncode == 0
    provenance = json.loads((bundle / "evidence/provenance.json").read_bytes())
    assert provenance["image"] is None, "the steps ran here, in no image, whatever the pipeline was compiled with"
    graph = bundle / "evidence/serving/classifier/1/model.onnx"
    data = load_digits()
    scans = [Image.fromarray(scan) for scan in (data.images[data.target <= 2] * 255 / 16).astype(np.uint8)]
    images = np.stack([np.asarray(scan.resize((16, 16), Image.Resampling.BILINEAR)) for scan in scans])[:, None]
    (logits,) = onnxruntime.InferenceSession(graph).run(["logits"], {"images": images})
    assert (logits.argmax(1) == data.target[data.target <= 2]).mean() > 0.9
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    refused = retrain("verify", bundle)
    assert (refused.returncode, "model.onnx has SHA-256" in refused.stderr) == (2, True)


def test_directory_is_not_handed_to_kserve(signed: Path):
    refused = retrain("export", "--kserve", "--config", signed / "retrain.yaml")
    assert (refused.returncode, "which a pod of KServe cannot read" in refused.stderr) == (2, True)
