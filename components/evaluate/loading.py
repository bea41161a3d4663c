"""Load a version to be asked: weights that do not fit are an error of the version, not of this program."""

from __future__ import annotations

from components.core.errors import BrokenModel
from components.core.models import Classifier, load_classifier
from components.core.registry import Registry


def load_version(registry: Registry, version: str) -> Classifier:
    """Rebuild a version's classifier from its verified files, in evaluation mode.

    Raises:
        BrokenModel: Its weights do not fit its model.json.
        IntegrityError: A file is not the one that was written.
    """
    try:
        return load_classifier(registry, version)
    except RuntimeError as error:  # what torch says of weights that do not fit
        raise BrokenModel(
            f"version {version} whose weights do not fit its model.json: {error}",
            expected="the weights of the network and the classes that are named there",
            next_command=f"retrain verify {version}; if its files are sound, train anew with --strategy retrain",
        ) from error
