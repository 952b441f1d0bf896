"""How many parameters and FLOPs the parts of a model have.

mmengine's FlopAnalyzer counts them, as in the toolboxes' own tools: a multiply-add is
one FLOP; convolutions, matrix products, norms and up-sampling count, element-wise
operations do not. What an MDEQ costs is then

    evaluations x cell + everything else.
"""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.model import BaseModel

from ..apis import find_layer
from ..deq import Unrolled

CELL = 'cell, one evaluation'


class Part(NamedTuple):
    """Size of a part of a model.

    Attributes:
        parameters (int): Number of its parameters.
        flops (int): Number of its FLOPs for one image.
    """

    parameters: int
    flops: int


def count_parts(model: BaseModel, shape: tuple[int, int]) -> dict[str, Part]:
    """Counts the parts of a model whose cell is evaluated once.

    Args:
        model (BaseModel): A segmentor or classifier in evaluation mode.
        shape (tuple[int, int]): Height and width of the image.

    Returns:
        dict[str, Part]: Parts that add up to the model. If it has a cell, that is the
        part :data:`CELL`.
    """
    sizes = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
    }
    found = find_layer(model)
    flops = _count_flops(model, shape)

    def part(name: str) -> Part:
        return Part(sizes.get(name, 0), flops[name])

    def rest(of: Part, *parts: Part) -> Part:
        return Part(
            of.parameters - sum(part.parameters for part in parts),
            of.flops - sum(part.flops for part in parts),
        )

    backbone, neck = part('backbone'), part('neck')
    parts = {}
    if found is None:
        parts['backbone'] = backbone
    else:
        parts[CELL] = part(f'{found[0]}.cell')
        parts['stem and injection'] = rest(backbone, parts[CELL])
    if 'neck' in sizes:
        parts['neck'] = neck
    # Segmentors call forward() of their heads, which the analyzer does not see.
    parts['head'] = rest(part(''), backbone, neck)
    return parts


def total_flops(parts: dict[str, Part], n_evals: int = 1) -> int:
    """Returns the FLOPs of a model that evaluates its cell ``n_evals`` times."""
    rest = sum(part.flops for name, part in parts.items() if name != CELL)
    return rest + (n_evals * parts[CELL].flops if CELL in parts else 0)


@torch.no_grad()
def _count_flops(model: BaseModel, shape: tuple[int, int]) -> dict[str, int]:
    """Returns the FLOPs of each module, by its name."""
    if find_layer(model) is None:
        return _analyze(model, torch.zeros(1, 3, *shape))
    # Tracing does not go with the parametrisation of the weights.
    model = deepcopy(model)
    model.backbone.switch_to_deploy()
    found = find_layer(model)
    assert found is not None
    # The unrolled mode evaluates the cell without a solver around it.
    with found[1].using(mode=Unrolled(1)):
        return _analyze(model, torch.zeros(1, model.backbone.in_channels, *shape))


def _analyze(model: BaseModel, image: torch.Tensor) -> dict[str, int]:
    analyzer = FlopAnalyzer(model, (image,))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analyzer.by_module()
