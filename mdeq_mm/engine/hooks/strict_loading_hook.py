"""Weights that fit the model, or an error."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...checkpoints import is_sharded, load_weights


@HOOKS.register_module()
class StrictLoadingHook(Hook):
    """Ends a run whose checkpoint does not hold the weights of the model.

    mmengine loads what fits and warns of the rest. A wrong checkpoint then gives the
    figures of random weights. The tools of this project use the hook; a checkpoint to
    start a training from is not looked at.

    Args:
        name (str): Name of the checkpoint, for the error. Defaults to
            ``'the checkpoint'``.
        hint (str): What to do, for the error. Defaults to ``''``.
        but (tuple[str]): Beginnings of keys that may be missing or unexpected. Defaults
            to ().

    Examples:
        >>> custom_hooks = [dict(type='StrictLoadingHook')]
    """

    # Before hooks that use the weights of the checkpoint.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        name: str = 'the checkpoint',
        hint: str = '',
        but: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.hint = hint
        self.but = but

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compares the checkpoint with the model.

        Raises:
            ValueError: If they do not fit each other.
        """
        if is_sharded(runner.model):
            runner.logger.warning(
                'the weights of %s are not compared with the model: it is sharded',
                self.name,
            )
            return
        try:
            load_weights(runner.model, checkpoint, self.name, but=self.but)
        except ValueError as error:
            raise ValueError(f'{error}\n{self.hint}'.rstrip()) from None
