"""What can go wrong, divided by what the caller can do about it.

    RetrainError
    ├── ConfigurationError      fix the configuration or the call        exit code 2
    │   ├── StoreUnreachable    fix the address, the network or the credentials
    │   ├── ConditionUnsupported   use a store that keeps conditional writes
    │   └── UnsoundStore        the same: it says that it did, and did not
    ├── DataError               fix the data                             exit code 2
    │   ├── SourceError         what was delivered is not a folder of images
    │   ├── IntegrityError      stored bytes are not the bytes that were written
    │   └── BrokenModel         a version gives answers that are none
    └── RunFailed               read the run record, mend, run again     exit code 1

A verdict (bad window, no drift, rejected challenger) is a value, never one of these. Not covered: programming
errors, which stay `AssertionError`, `TypeError` and so on.
"""

from __future__ import annotations


class RetrainError(Exception):
    """An error that tells what was found, what was expected and what to type next.

    Args:
        found: What is there, with the name of the thing.
        expected: What should have been there.
        next_command: What the reader does now; a command where there is one.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str, next_command: str) -> None:
        super().__init__(found, expected, next_command)
        self.found, self.expected, self.next_command = found, expected, next_command

    def __str__(self) -> str:
        return f"found {self.found}; expected {self.expected}; next: {self.next_command}"

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling: worker pools send exceptions between processes, and ours has keyword-only arguments."""
        return _rebuild, (type(self), *self.args)


def _rebuild(kind: type[RetrainError], found: str, expected: str, next_command: str) -> RetrainError:
    return kind(found, expected=expected, next_command=next_command)


class ConfigurationError(RetrainError):
    """A key, a value or an argument that the user can correct."""

    exit_code = 2


class StoreUnreachable(ConfigurationError):
    """The object store did not answer, or refused the credentials."""


class ConditionUnsupported(ConfigurationError):
    """The store answered that it does not implement a conditional write."""


class UnsoundStore(ConfigurationError):
    """The store answers that it did what it did not: a ledger in it could lose or swap records unnoticed."""


class DataError(RetrainError):
    """Data that its owner has to mend."""

    exit_code = 2


class SourceError(DataError):
    """The source holds no labelled images, or something that is no image."""


class IntegrityError(DataError):
    """Stored bytes differ from their recorded digest, or a record chain is broken."""


class BrokenModel(DataError):
    """A version whose answers are no probabilities, or of classes that it does not have."""


class RunFailed(RetrainError):
    """A step of a run crashed; the run record says which."""
