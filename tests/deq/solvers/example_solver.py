"""Aitken's relaxation, a solver outside the package: what a new one has to write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from mdeq_mm.deq import FixedPointSolver, MethodState


@dataclass
class AitkenState(MethodState):
    share: Tensor
    last: Optional[Tensor] = None


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class AitkenSolver(FixedPointSolver):
    def init(self, z0):
        return AitkenState(share=torch.full_like(z0[:, :1], 0.7))

    def step(self, state, z, fz, g):
        if state.last is not None:
            change = g - state.last
            product = (state.last * change).sum(dim=1, keepdim=True)
            share = -state.share * product / change.square().sum(dim=1, keepdim=True)
            state.share = torch.where(share.isfinite(), share, state.share)
        state.last = g
        return z + state.share * g
