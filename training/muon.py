"""Muon with the matrices of one shape updated together: a few large products, not thousands.

Momentum, then the nearest orthogonal matrix by five Newton-Schulz steps, scaled so that learning
rates and weight decay chosen for AdamW carry over (update RMS of 0.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalize(stack: Tensor) -> Tensor:
    """Newton-Schulz on (count, rows, columns); taller ones are turned: rows <= columns is cheap."""
    tall = stack.shape[1] > stack.shape[2]
    x: Tensor = stack.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class StackedMuon(torch.optim.Optimizer):
    """The optimiser; every parameter must be a matrix."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        is_eager = not torch.cuda.is_available()
        self._orthogonalize = torch.compile(orthogonalize, dynamic=False, disable=is_eager)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """One update of all matrices."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                shapes[tuple(p.shape)].append(p)
            for params in shapes.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Move all matrices of one shape; the first of them carries the momentum of all."""
        gradient = torch.stack([p.grad for p in params if p.grad is not None]).float()
        assert len(gradient) == len(params), "every matrix must have a gradient"
        state = self.state[params[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = self._orthogonalize(gradient.lerp(momentum, group["momentum"])).float()
        scale = 0.2 * max(params[0].shape) ** 0.5
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list((update * scale).unbind()), alpha=-group["lr"])
