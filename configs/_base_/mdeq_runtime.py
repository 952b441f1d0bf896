# What every recipe of an MDEQ needs beside the default_runtime of its toolbox.
custom_imports = dict(imports=['mdeq_mm'], allow_failed_imports=False)

# Toolboxes define default_hooks in bases of their own, and mmengine refuses a key that
# two bases define. A recipe therefore takes these hooks over by a line of its own:
#     default_hooks = _base_.mdeq_hooks
# Whatever inherits from the recipe changes a hook by its name:
#     default_hooks = dict(equilibrium=dict(pretrain_iters=16000))
mdeq_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook'),
    equilibrium=dict(type='ImplicitGradientHook'),
    random_state=dict(type='RandomStateHook'),
)
