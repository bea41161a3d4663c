"""The error tree: what the exit code is, what the message holds, and that errors cross processes."""

import pickle

import pytest

from components.core import errors
from components.core.errors import (
    BrokenModel,
    ConditionUnsupported,
    ConfigurationError,
    DataError,
    IntegrityError,
    RetrainError,
    RunFailed,
    SourceError,
    StoreUnreachable,
    UnsoundStore,
)

EXIT_CODES = [
    (RetrainError, 1),
    (ConfigurationError, 2),
    (StoreUnreachable, 2),
    (ConditionUnsupported, 2),
    (UnsoundStore, 2),
    (DataError, 2),
    (SourceError, 2),
    (IntegrityError, 2),
    (BrokenModel, 2),
    (RunFailed, 1),
]


def example(kind: type[RetrainError]) -> RetrainError:
    return kind("an empty folder", expected="a folder of images", next_command="retrain run FOLDER")


def test_every_error_is_in_the_table() -> None:
    tree = {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, RetrainError)}
    assert tree == {kind for kind, _ in EXIT_CODES}


@pytest.mark.parametrize(("kind", "exit_code"), EXIT_CODES)
def test_exit_code_tells_a_failed_run_from_a_wrong_call(kind: type[RetrainError], exit_code: int) -> None:
    assert example(kind).exit_code == exit_code


@pytest.mark.parametrize(("kind", "_"), EXIT_CODES)
def test_every_error_stands_in_the_drawing(kind: type[RetrainError], _: int) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", [kind for kind, _ in EXIT_CODES])
def test_message_says_what_was_found_expected_and_what_to_do(kind: type[RetrainError]) -> None:
    text = str(example(kind))
    order = [text.index(part) for part in ("an empty folder", "a folder of images", "retrain run FOLDER")]
    assert order == sorted(order)
    assert "expected" in text
    assert "next" in text


@pytest.mark.parametrize("kind", [kind for kind, _ in EXIT_CODES])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(kind: type[RetrainError], protocol: int) -> None:
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  # our own bytes
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.found, copy.expected, copy.next_command) == (error.found, error.expected, error.next_command)


def test_the_three_parts_cannot_be_left_out() -> None:
    with pytest.raises(TypeError):
        RetrainError("only this")  # type: ignore[call-arg]
