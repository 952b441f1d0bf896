"""Everything that measures: time, memory, counts, solvers, gradients and video."""

from .accuracy import BudgetedTest, accuracy_at_budgets
from .backbones import (
    STOCK_BACKBONES,
    Case,
    Subject,
    load_with_images,
    measure_models,
    run_case,
)
from .convergence import convergence_trace
from .counting import Work, count_saved_bytes, count_work
from .flops import CELL, Part, count_parts, total_flops
from .gradients import GradientCost, compare_gradients, modes_to_compare
from .images import NamedSamples, name_samples, read_image
from .memory import measure_in_process, measure_memory, peak_bytes
from .problems import Problem, equilibrium_problems, evaluations_to, residuals
from .solvers import (
    has_torchdeq,
    measure_problem,
    measure_solvers,
    own_solvers,
    torchdeq_solvers,
)
from .sweep import Grid, sweep, sweep_problem
from .timing import Stopwatch, interleave, timed
from .video import Saving, compare_starts, pan, preprocess, read_frames, solve_frames

__all__ = [
    'CELL',
    'STOCK_BACKBONES',
    'BudgetedTest',
    'Case',
    'GradientCost',
    'Grid',
    'NamedSamples',
    'Part',
    'Problem',
    'Saving',
    'Stopwatch',
    'Subject',
    'Work',
    'accuracy_at_budgets',
    'compare_gradients',
    'compare_starts',
    'convergence_trace',
    'count_parts',
    'count_saved_bytes',
    'count_work',
    'equilibrium_problems',
    'evaluations_to',
    'has_torchdeq',
    'interleave',
    'load_with_images',
    'measure_in_process',
    'measure_memory',
    'measure_models',
    'measure_problem',
    'measure_solvers',
    'modes_to_compare',
    'name_samples',
    'own_solvers',
    'pan',
    'peak_bytes',
    'preprocess',
    'read_frames',
    'read_image',
    'residuals',
    'run_case',
    'solve_frames',
    'sweep',
    'sweep_problem',
    'timed',
    'torchdeq_solvers',
    'total_flops',
]
