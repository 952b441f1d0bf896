"""An initial guess of one's own: the injections."""

from mmengine.registry import TASK_UTILS

from mdeq_mm.deq import InitialGuess


@TASK_UTILS.register_module(force=True)
class InjectionGuess(InitialGuess):
    """Starts from the injections, as if one evaluation of ``f`` had been made."""

    def forward(self, injections, layout, dtype):
        return layout.pack(injections).detach().to(dtype)
