"""Parameter-wise settings of the optimizer."""

from __future__ import annotations

from typing import Any, Optional, Union

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...deq.checks import check_number
from ...deq.parts import weight_norm_gains


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EquilibriumOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Does what the default constructor does, and two things more.

    - ``norm_decay_mult`` holds for the gains of weight normalisation, too. The stock
      constructors take them for weights of convolutions. A weight that is normalised
      has the norm of its gain, so it decays only if the gain does.
    - ``layer_decay_rate`` of ``paramwise_cfg`` is the factor between the learning rates
      of one layer and the next, in (0, 1]. What follows the backbone has the base
      rate. It works in every toolbox, for each backbone with a method
      ``get_layer_depth``; among them are :class:`MDEQ`, and ResNet and ConvNeXt of
      mmpretrain.

    As with the default constructor, ``custom_keys`` win over ``norm_decay_mult``.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper.
        paramwise_cfg (dict, optional): Parameter-wise settings. Defaults to None.

    Raises:
        ValueError: If ``layer_decay_rate`` is out of its range.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        ...     constructor='EquilibriumOptimWrapperConstructor',
        ...     paramwise_cfg=dict(norm_decay_mult=0.0, layer_decay_rate=0.7),
        ... )
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        check_number('layer_decay_rate', rate, above=0, most=1, optional=True)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: Optional[Union[int, float]] = None,
    ) -> None:
        """Adds a group for each parameter of a module.

        Args:
            params (list[dict]): The groups; changed in place.
            module (nn.Module): The module.
            prefix (str): Name of the module in the model. Defaults to ``''``, that of
                the model itself.
            is_dcn_module (int or float, optional): Whether the module is part of a
                deformable convolution. Defaults to None.

        Raises:
            ValueError: If ``layer_decay_rate`` is given and the backbone does not say
                how deep a parameter lies.
        """
        begin = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # the call for the whole model has yet to end
            return
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups = {names[id(group['params'][0])]: group for group in params[begin:]}
        self._set_gains(module, names, groups)
        self._set_layers(module, groups)

    def _set_gains(
        self, model: nn.Module, names: dict[int, str], groups: dict[str, dict]
    ) -> None:
        multiplier = self.paramwise_cfg.get('norm_decay_mult')
        if multiplier is None:
            return
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        for gain in weight_norm_gains(model):
            name = names[id(gain)]
            if gain.requires_grad and not any(key in name for key in custom_keys):
                self._set(name, groups[name], weight_decay=self.base_wd * multiplier)

    def _set_layers(self, model: nn.Module, groups: dict[str, dict]) -> None:
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None:
            return
        backbone: Any = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(
                'layer_decay_rate needs a model whose backbone has a method '
                f'get_layer_depth, as MDEQ; {type(model).__name__} has the backbone '
                f'{type(backbone).__name__}'
            )
        for name, group in groups.items():
            depth, n_layers = backbone.get_layer_depth(name, 'backbone.')
            lr = group.get('lr', self.base_lr) * rate ** (n_layers - depth - 1)
            self._set(name, group, lr=lr)

    def _set(self, name: str, group: dict, **settings: float) -> None:
        group.update(settings)
        for key, value in settings.items():
            print_log(f'paramwise_options -- {name}:{key}={value}', logger='current')
