"""Randomness that is a function of where one is, not of what came before.

Every epoch and every step draws from a generator of its own, seeded by (seed, purpose, number). A training that goes on
after a kill, or on another number of GPUs, therefore draws what it would have drawn: there is no state to keep.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What is drawn; each has a stream of its own."""

    ORDER = 0
    AUGMENTATION = 1
    DROPOUT = 2
    WEIGHTS = 3
    ROWS = 4
    EPISODES = 5
    REFERENCE = 6


def generator(seed: int, purpose: Purpose, number: int = 0) -> np.random.Generator:
    """A generator for one draw: of epoch, step or phase `number`.

    Source:
        Seeds are mixed by NumPy's SeedSequence (O'Neill, "Developing a seed_seq alternative", 2015).
    """
    return np.random.default_rng([seed, purpose, number])


def torch_seed(seed: int, purpose: Purpose, number: int = 0) -> int:
    """The same as a seed for torch, in [0, 2^62)."""
    words = np.random.SeedSequence([seed, purpose, number]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(2))


def seed_torch(seed: int) -> None:
    """Seed torch's global generators, from which dropout draws.

    Not `torch.manual_seed`: where CUDA is not in use, that remembers each call, with its stack, for when it will be.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def torch_generator(seed: int, purpose: Purpose, number: int = 0) -> torch.Generator:
    """The same as a torch generator on the CPU."""
    return torch.Generator().manual_seed(torch_seed(seed, purpose, number))
