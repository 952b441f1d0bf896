"""Pictures of solves in the logs of a validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...deq import EquilibriumLayer, ForwardPass
from ...deq.checks import check_int
from .base import EquilibriumHook, unwrapped, weakly


@HOOKS.register_module()
class EquilibriumVisualizationHook(EquilibriumHook):
    """Shows how the equilibria of the first images of a validation were found.

    The pictures go to the visualizer of the runner, and so to each of its backends:
    files, TensorBoard, WandB. They are, for image ``K``,

    - ``equilibrium_residuals_K``: residual of each branch against the evaluations;
    - ``equilibrium_slow_places_K``: where in the image it is large at the end;
    - ``equilibrium_features_K``: features of each branch on the way.

    The solve is repeated for the pictures, after the prediction. Metrics, random
    generators and the mode of the model are left alone. Only the main process draws, so
    the images are the first ones of its share. While the training is unrolled, the
    pictures show the solve as the model configures it. With sliding windows they show
    the first window.

    Args:
        interval (int): Validations from one that is drawn to the next, at least 1. The
            first one of a run is drawn. Defaults to 1.
        num_images (int): Images to draw, at least 1. Defaults to 2.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> default_hooks = dict(
        ...     equilibrium_pictures=dict(
        ...         type='EquilibriumVisualizationHook', interval=5, num_images=2
        ...     )
        ... )
    """

    def __init__(self, interval: int = 1, num_images: int = 2) -> None:
        super().__init__()
        check_int('interval', interval, 1)
        check_int('num_images', num_images, 1)
        self.interval = interval
        self.num_images = num_images
        self._n_validations = 0
        self._n_drawn = num_images
        self._n_passes = 0
        # The first pass of the iteration, with its layer.
        self._observed: list[tuple[EquilibriumLayer, ForwardPass]] = []

    def before_run(self, runner: Runner) -> None:
        """Begins to count validations."""
        super().before_run(runner)
        self._n_validations = 0

    def before_train(self, runner: Runner) -> None:
        """Checks that there is something to follow.

        Raises:
            ValueError: If the model has no equilibrium layer, or none that is trained.
        """
        super().before_train(runner)
        layers = self.layers(runner.model)
        if not any(p.requires_grad for layer in layers for p in layer.parameters()):
            raise ValueError(
                f'{type(self).__name__} follows a layer that is trained, the '
                f'EquilibriumLayer of {type(unwrapped(runner.model)).__name__} is '
                'frozen. Remove the hook, or draw once with '
                'tools/analysis_tools/visualize_equilibrium.py'
            )

    def before_val(self, runner: Runner) -> None:
        """Decides whether this validation is drawn."""
        is_due = self._n_validations % self.interval == 0 and is_main_process()
        self._n_drawn = 0 if is_due else self.num_images
        self._n_validations += 1

    def before_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Waits for the first forward pass, if there is an image to draw."""
        super().before_val_iter(runner, *args, **kwargs)
        self._n_passes = 0
        if self._n_drawn < self.num_images:
            for layer in self.layers(runner.model):
                handle = layer.register_pass_hook(weakly(self._observe))
                self.iteration_scope.enter_context(handle)
            self.iteration_scope.callback(self._observed.clear)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[Sequence[Any]] = None,
    ) -> None:
        """Draws images of the batch."""
        for layer, forward_pass in self._observed:
            left = self.num_images - self._n_drawn
            for sample in range(min(len(forward_pass.state), left)):
                # Of several windows the first one is not the image.
                inputs = _input(data_batch, sample) if self._n_passes == 1 else None
                self._draw(runner, layer, forward_pass, sample, inputs)
        super().after_val_iter(runner, batch_idx, data_batch, outputs)

    def _observe(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        self._n_passes += 1
        if self._n_passes == 1:
            self._observed.append((layer, forward_pass))

    def _draw(
        self,
        runner: Runner,
        layer: EquilibriumLayer,
        forward_pass: ForwardPass,
        sample: int,
        inputs: Any,
    ) -> None:
        """Adds the pictures of one image of a batch."""
        # What draws is imported by those who draw.
        from ... import visualization

        image = visualization.picture_input(inputs)
        solves = {'': visualization.examine(layer, forward_pass, sample, image)}
        pictures = {
            'residuals': visualization.picture_residuals(solves),
            'slow_places': visualization.picture_slow_places(solves),
            'features': visualization.picture_features(solves),
        }
        for name, picture in pictures.items():
            runner.visualizer.add_image(
                f'equilibrium_{name}_{self._n_drawn}', picture, runner.iter
            )
        self._n_drawn += 1


def _input(data_batch: Any, sample: int) -> Any:
    """Returns what a batch of a toolbox has of an image, None if it has nothing."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
    if isinstance(inputs, (list, tuple, Tensor)) and sample < len(inputs):
        return inputs[sample]
    return None
