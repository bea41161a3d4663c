"""The head as multinomial logistic regression on fixed features, solved to its optimum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def fit_logistic(
    head: nn.Linear, features: Tensor, labels: Tensor, *, l2: float, iterations: int, weights: Tensor | None = None
) -> list[float]:
    """Minimise mean cross-entropy + l2 / 2 * |weight|^2 (the bias is free), in place: convex, so there is one answer.

    Args:
        head: From d features to the classes; where it starts does not matter.
        features: float32, shape (n, d).
        labels: int64, shape (n,).
        l2: Strength; scikit-learn's C is 1 / (n * l2).
        iterations: Of L-BFGS, at most.
        weights: Of each class, float32 (classes,); by default all count alike.

    Returns:
        The objective at the start and at the end, nats.

    Raises:
        FloatingPointError: The objective is not finite.

    Source:
        Donahue et al., "DeCAF", ICML 2014 (features of a fixed network, a linear classifier on top). L-BFGS: Liu &
        Nocedal, Mathematical Programming 45 (1989).
    """
    # L-BFGS feels it where the curvature differs from feature to feature: about its variance, and the penalty. Divided
    # by the variance alone, features that hardly change make the penalty steep, and it stops far from the optimum.
    features = features.double()
    centre = features.mean(0)
    scale = (features.var(0, correction=0) + l2).clamp(min=1e-12).sqrt()
    standard = (features - centre) / scale
    weight = torch.zeros_like(head.weight, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros_like(head.bias, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    counts = None if weights is None else weights.double()
    losses: list[float] = []

    def evaluate() -> Tensor:
        solver.zero_grad()
        logits = standard @ weight.T + bias
        total = functional.cross_entropy(logits, labels, counts, reduction="sum") / len(labels)
        loss = total + l2 / 2 * (weight / scale).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    solver.step(evaluate)
    if not bool(torch.tensor(losses).isfinite().all()):
        raise FloatingPointError(f"the objective is {losses[-1]}: features that are not finite")
    with torch.no_grad():
        raw = weight / scale
        head.weight.copy_(raw)
        head.bias.copy_(bias - raw @ centre)
    return [losses[0], losses[-1]]
