"""The optimizers: Muon for the blocks' matrices, AdamW for everything else.

Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon) replaces a matrix's
momentum by the nearest matrix with orthonormal rows or columns, found by a few steps of a
Newton-Schulz iteration. Matrices of one shape are stacked and done together: at these sizes a
CPU would otherwise spend more time starting operations than doing them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # coefficients of the iteration's odd polynomial, as published
ITERATIONS = 5
ADAM_LIKE = 0.2  # the size of AdamW's usual update, so that one learning rate fits both


class Muon:
    """Momentum with orthogonalized updates for matrices."""

    def __init__(self, matrices: Iterable[nn.Parameter], momentum: float, decay: float) -> None:
        self.momentum = momentum
        self.decay = decay
        groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[tuple(matrix.shape)].append(matrix)
        self.groups = list(groups.values())
        self.velocities = [torch.zeros(len(g), *g[0].shape) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, velocity in zip(self.groups, self.velocities, strict=True):
            gradient = torch.stack([_gradient(matrix) for matrix in group])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(velocity, self.momentum))  # Nesterov's look-ahead
            size = rate * ADAM_LIKE * max(velocity.shape[-2:]) ** 0.5
            for matrix, change in zip(group, update.unbind(), strict=True):
                matrix.mul_(1 - rate * self.decay).sub_(change, alpha=size)

    def state_dict(self) -> list[Tensor]:
        return self.velocities

    def load_state_dict(self, velocities: list[Tensor]) -> None:
        for mine, saved in zip(self.velocities, velocities, strict=True):
            mine.copy_(saved)


def _gradient(matrix: nn.Parameter) -> Tensor:
    return torch.zeros_like(matrix) if matrix.grad is None else matrix.grad


def orthogonal(stack: Tensor) -> Tensor:
    """Brings all singular values of `(matrices, rows, columns)` near one."""
    first, third, fifth = COEFFICIENTS
    wide = stack if stack.shape[-2] <= stack.shape[-1] else stack.transpose(-1, -2)
    x = (wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        square = x @ x.transpose(-1, -2)
        x = first * x + (third * square + fifth * square @ square) @ x
    result = x.float()
    return result if wide is stack else result.transpose(-1, -2)


class Optimizer:
    """Both optimizers of a model, with one learning rate."""

    def __init__(self, modules: list[nn.Module], matrices_by_muon: bool) -> None:
        matrices, others, still = [], [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                if matrices_by_muon and parameter.ndim == 2 and ".layers." in name:
                    matrices.append(parameter)
                elif parameter.ndim >= 2:
                    others.append(parameter)
                else:
                    still.append(parameter)  # norms, biases, gates: no decay
        self.parameters = [*matrices, *others, *still]
        self.muon = Muon(matrices, momentum=0.95, decay=0.05)
        self.adam = torch.optim.AdamW(
            [
                {"params": others, "weight_decay": 0.01},
                {"params": still, "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(0.9, 0.98),
            fused=True,
        )

    def step(self, muon_rate: float, adam_rate: float) -> float:
        """Makes one step of both; returns the gradient's norm before it was clipped to one."""
        length = nn.utils.clip_grad_norm_(self.parameters, 1.0).item()
        self.muon.step(muon_rate)
        for group in self.adam.param_groups:
            group["lr"] = adam_rate
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None
        return length

    def state_dict(self) -> dict[str, object]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
