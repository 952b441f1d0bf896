import pytest
from mmengine.registry import MODELS, DefaultScope, Registry, init_default_scope

from mdeq_mm.deq import (
    BroydenSolver,
    Cell,
    EquilibriumGradient,
    FixedPointSolver,
    ImplicitGradient,
    PicardSolver,
)
from mdeq_mm.deq.builder import build

from .example_cell import PerceptronCell


class TestBuild:
    def test_from_dict(self):
        solver = build(
            dict(type='BroydenSolver', max_evals=7), FixedPointSolver, 'forward_solver'
        )
        assert isinstance(solver, BroydenSolver)
        assert solver.max_evals == 7

    def test_from_class(self):
        solver = build(dict(type=BroydenSolver), FixedPointSolver, 'forward_solver')
        assert isinstance(solver, BroydenSolver)

    def test_returns_what_is_built(self):
        solver = BroydenSolver()
        assert build(solver, FixedPointSolver, 'forward_solver') is solver

    def test_leaves_the_config_as_it_is(self):
        cfg = dict(type='BroydenSolver', max_evals=7)
        build(cfg, FixedPointSolver, 'forward_solver')
        assert cfg == dict(type='BroydenSolver', max_evals=7)

    @pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain', 'mmengine', 'elsewhere'])
    def test_no_warning_under_any_default_scope(self, scope, caplog, recwarn):
        with DefaultScope.overwrite_default_scope(None):
            init_default_scope(scope)
            caplog.clear()
            recwarn.clear()
            cfg = dict(type='ImplicitGradient', solver=dict(type='AndersonSolver'))
            gradient = build(cfg, EquilibriumGradient, 'gradient')
            assert isinstance(gradient, ImplicitGradient)
            assert not caplog.records
            assert not recwarn.list

    def test_unknown_type(self):
        with pytest.raises(
            ValueError, match="forward_solver.*'Newton'.*Anderson.*Broyden.*Picard"
        ):
            build(dict(type='Newton'), FixedPointSolver, 'forward_solver')

    def test_type_of_another_kind(self):
        with pytest.raises(ValueError, match="forward_solver.*'ImplicitGradient'"):
            build(dict(type='ImplicitGradient'), FixedPointSolver, 'forward_solver')

    def test_misspelt_argument(self):
        with pytest.raises(TypeError, match='no argument max_iter, allowed are max_ev'):
            build(dict(type='PicardSolver', max_iter=3), FixedPointSolver, 'solver')

    @pytest.mark.parametrize('cfg', [None, 'BroydenSolver', dict(max_evals=3)])
    def test_not_a_config(self, cfg):
        with pytest.raises(TypeError, match="solver must be .* the key 'type', got"):
            build(cfg, FixedPointSolver, 'solver')

    def test_another_registry(self):
        cfg = dict(type='PerceptronCell', channels=(3,))
        assert isinstance(build(cfg, Cell, 'cell', registry=MODELS), PerceptronCell)
        with pytest.raises(ValueError, match="cell: unknown Cell type 'Perceptron"):
            build(cfg, Cell, 'cell')
        with pytest.raises(ValueError, match='allowed are .*PerceptronCell'):
            build(dict(type='Linear'), Cell, 'cell', registry=MODELS)

    def test_registered_function_is_no_class(self):
        registry = Registry('test')
        registry.register_module(name='make', module=lambda: None)
        with pytest.raises(ValueError, match="solver: unknown .* 'make'"):
            build(dict(type='make'), FixedPointSolver, 'solver', registry=registry)


class TestDefaults:
    def test_they_fill_in_what_the_class_takes(self):
        defaults = dict(max_evals=7, channels=(3,))
        solver = build(
            dict(type='PicardSolver'), FixedPointSolver, 'solver', defaults=defaults
        )
        assert solver.max_evals == 7
        assert defaults == dict(max_evals=7, channels=(3,))

    def test_the_config_counts_more(self):
        cfg = dict(type='PicardSolver', max_evals=5)
        solver = build(cfg, FixedPointSolver, 'solver', defaults=dict(max_evals=7))
        assert solver.max_evals == 5
        assert cfg == dict(type='PicardSolver', max_evals=5)

    def test_what_is_built_stays(self):
        solver = PicardSolver()
        assert (
            build(solver, FixedPointSolver, 'solver', defaults=dict(max_evals=7))
            is solver
        )
