"""The cell of a transformer: self-attention and feed-forward network, at equilibrium.

Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019,
https://arxiv.org/abs/1909.01377.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...deq import Cell, VariationalDropout
from ...deq.checks import check_int, check_number


class SelfAttention(nn.Module):
    """Multi-head self-attention that can be differentiated twice.

    Args:
        channels (int): Channels of the tokens.
        num_heads (int): Heads, of ``channels / num_heads`` channels each.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Lets each token attend to all tokens of its sample.

        Args:
            x (Tensor): Tokens, ``(B, L, C)``.

        Returns:
            Tensor: Of the same shape.
        """
        q, k, v = (
            self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        # Written out: torch's fused attention has no second derivative, which
        # Jacobian regularisation takes.
        weights = (self.scale * q @ k.transpose(2, 3)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@MODELS.register_module()
class TransformerCell(Cell):
    """One block of a transformer as the function ``f(z; x)``.

    ``h = LN(u + drop(attention(u)))`` with ``u = z + x``, then
    ``LN(h + drop(feedforward(h)))``. The positions of all feature maps are tokens of
    one sequence: each attends to all positions of all maps.

    The norms come last (post-norm), as in the paper. So each token of an iterate has a
    fixed size whatever the weights are, and the first norm divides by the size of
    ``z + x``. A norm in front of each branch (pre-norm), as vision transformers have
    it, leaves the identity ``z -> z`` in the Jacobian: a stack of few blocks may grow,
    but an equilibrium would have to cancel its injection.

    The cell does not know where a token is. That is for the injection to say.

    Args:
        channels (Sequence[int]): Channels of each feature map, the same for all.
        num_heads (int): Heads of the attention; they divide the channels. Defaults
            to 4.
        feedforward_channels (int, optional): Channels in the feed-forward network.
            Defaults to None, four times those of a token.
        dropout (float): Probability of the variational dropout. Defaults to 0.0.
        act_cfg (dict): Config of the activation. Defaults to ``dict(type='GELU')``.

    Raises:
        ValueError: If the channels differ, or an argument is out of its range.

    Examples:
        >>> import torch
        >>> from mdeq_mm.models import TransformerCell
        >>> cell = TransformerCell(channels=(16,), num_heads=2)
        >>> z, x = (torch.zeros(1, 16, 4, 4),), (torch.rand(1, 16, 4, 4),)
        >>> tuple(cell(z, x)[0].shape)
        (1, 16, 4, 4)
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_heads: int = 4,
        feedforward_channels: Optional[int] = None,
        dropout: float = 0.0,
        act_cfg: dict = dict(type='GELU'),
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        check_int('num_heads', num_heads, 1)
        check_int('feedforward_channels', feedforward_channels, 1, optional=True)
        check_number('dropout', dropout, least=0, below=1)
        for width in self.channels:
            check_int('channels of a feature map', width, 1)
        if len(set(self.channels)) != 1 or self.channels[0] % num_heads:
            raise ValueError(
                'channels must be one number for each feature map, all the same and '
                f'divisible by num_heads={num_heads}, got {self.channels}'
            )
        width = self.channels[0]
        hidden = 4 * width if feedforward_channels is None else feedforward_channels
        self.attention = SelfAttention(width, num_heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.feedforward = nn.Sequential(
            nn.Linear(width, hidden),
            build_activation_layer(act_cfg),
            nn.Linear(hidden, width),
        )
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.dropout1 = VariationalDropout(dropout, width)
        self.dropout2 = VariationalDropout(dropout, width)

    def forward(
        self, states: Sequence[Tensor], injections: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Evaluates ``f`` once.

        Args:
            states (Sequence[Tensor]): State of each feature map, ``(B, C, *shape_i)``.
            injections (Sequence[Tensor]): Injection of each map, of its shape.

        Returns:
            tuple[Tensor]: Next state of each map, of the same shapes.
        """
        u = torch.cat([(z + x).flatten(2) for z, x in zip(states, injections)], dim=2)
        u = u.transpose(1, 2)
        h = self.norm1(u + self._drop(self.dropout1, self.attention(u)))
        h = self.norm2(h + self._drop(self.dropout2, self.feedforward(h)))
        lengths = [z.shape[2:].numel() for z in states]
        parts = h.transpose(1, 2).split(lengths, dim=2)
        return tuple(part.reshape(z.shape) for part, z in zip(parts, states))

    @staticmethod
    def _drop(dropout: VariationalDropout, tokens: Tensor) -> Tensor:
        """Drops channels of tokens ``(B, L, C)``, the same ones of all tokens."""
        return dropout(tokens.transpose(1, 2)).transpose(1, 2)
