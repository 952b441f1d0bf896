"""What mmengine does in every run, and takes longer over than the runs of the tests do.

Importing this module shortens it for the process.
"""

import functools

import mmengine._strategy.base
import mmengine.config.config
import mmengine.config.utils
import mmengine.runner.runner

# A config is written several times a run. yapf would put its text in order each time.
mmengine.config.config.FormatCode = lambda text, **kwargs: (text, False)

# To find a base in a toolbox, all of its descriptions of models are read.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)

# To log the versions of compilers, they are started.
for module in (mmengine.runner.runner, mmengine._strategy.base):
    module.collect_env = dict
