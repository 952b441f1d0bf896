"""What every cell promises. A new one is one line in the table."""

import copy
from threading import Thread

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mdeq_mm.deq import (
    Cell,
    EquilibriumLayer,
    FreezablePart,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    current_frozen,
)
from mdeq_mm.deq.builder import build
from mdeq_mm.models import MultiscaleCell, TransformerCell

from .example_cell import PerceptronCell

CHANNELS = (8, 16)
# Makes the cell with a probability of dropout.
CELLS = {
    'perceptron': lambda p: PerceptronCell(CHANNELS, hidden=8, dropout=p),
    'multiscale': lambda p: MultiscaleCell(
        CHANNELS, expansion=1, num_groups=4, dropout=p
    ),
    'multiscale-with-cp': lambda p: MultiscaleCell(
        CHANNELS, expansion=1, num_groups=4, dropout=p, with_cp=True
    ),
    # Both maps have the same channels: their positions attend to each other.
    'transformer': lambda p: TransformerCell((8, 8), num_heads=2, dropout=p),
}


def maps(cell):
    """Feature maps of the channels of a cell, each half as large as the one before."""
    return tuple(
        torch.randn(2, width, 4 >> level, 6 >> level)
        for level, width in enumerate(cell.channels)
    )


@pytest.fixture(params=CELLS)
def cell(request):
    return CELLS[request.param](0.5)


@pytest.fixture
def apply(cell):
    """Evaluates the cell at the same states each time, in one tensor."""
    states, injections = maps(cell), maps(cell)

    def apply(rows=slice(None)):
        features = cell([z[rows] for z in states], [x[rows] for x in injections])
        return torch.cat([z.flatten(1) for z in features], dim=1)

    return apply


def parts_of(cell):
    return [part for part in cell.modules() if isinstance(part, FreezablePart)]


def held_by(cell):
    return [part for part in parts_of(cell) if part.held is not None]


def contents(module):
    """All that lies on the modules of a model, with what identifies it."""
    found = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, dict):
                for inner, item in value.items():
                    found[name, key, inner] = id(item)
            found[name, key] = id(value)
    return found


def run_in_a_thread(function):
    results = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


class TestEveryCell:
    def test_shapes(self, cell):
        states = maps(cell)
        outputs = cell(states, maps(cell))
        assert isinstance(outputs, tuple)
        assert [z.shape for z in outputs] == [z.shape for z in states]

    def test_held_while_frozen(self, cell, apply):
        with cell.freeze(maps(cell)):
            first = apply()
            assert torch.equal(first, apply())
        with cell.freeze(maps(cell)):
            assert not torch.equal(first, apply())

    def test_entered_again_and_again(self, cell, apply):
        frozen = cell.freeze(maps(cell))
        with frozen:
            first = apply()
        with frozen, frozen:
            assert torch.equal(first, apply())
            assert len(held_by(cell)) == len(parts_of(cell))
        assert held_by(cell) == []

    def test_evaluation_is_the_same_without_freezing(self, cell, apply):
        cell.eval()
        expected = apply()
        with cell.freeze(maps(cell)):
            assert torch.equal(apply(), expected)

    def test_samples(self, cell, apply):
        """What is held for some samples is theirs."""
        frozen = cell.freeze(maps(cell))
        with frozen:
            whole = apply()
        for numbers in ([1], [1, 0], [0, 1]):
            rows = torch.tensor(numbers)
            with frozen.select(rows):
                torch.testing.assert_close(apply(rows), whole[rows])

    def test_nested(self, cell, apply):
        with cell.freeze(maps(cell)):
            outer = apply()
            with cell.freeze(maps(cell)):
                inner = apply()
                assert torch.equal(inner, apply())
            assert torch.equal(outer, apply())
        assert not torch.equal(outer, inner)

    def test_contexts_that_end_in_the_order_they_began(self, cell, apply):
        first, second = cell.freeze(maps(cell)), cell.freeze(maps(cell))
        first.__enter__()
        second.__enter__()
        innermost = apply()
        first.__exit__(None, None, None)
        assert current_frozen() is second
        assert torch.equal(apply(), innermost)
        second.__exit__(None, None, None)
        assert current_frozen() is None
        assert held_by(cell) == []

    def test_released_after_an_error(self, cell):
        with pytest.raises(KeyError), cell.freeze(maps(cell)):
            raise KeyError
        assert held_by(cell) == []

    def test_other_threads_see_nothing_of_it(self, cell, apply):
        with cell.freeze(maps(cell)) as frozen:
            inside = apply()
            assert run_in_a_thread(lambda: held_by(cell)) == []
            assert not torch.equal(run_in_a_thread(apply), inside)

            def entered():
                with frozen:
                    return apply()

            assert torch.equal(run_in_a_thread(entered), inside)

    def test_two_cells(self, cell, apply):
        twin = copy.deepcopy(cell)
        with cell.freeze(maps(cell)):
            assert held_by(twin) == []
            assert held_by(copy.deepcopy(cell)) == []
            before = apply()
            with twin.freeze(maps(cell)):
                assert len(held_by(twin)) == len(parts_of(twin))
                assert torch.equal(apply(), before)
                with cell.eval().freeze(maps(cell)):
                    # A part may hold nothing where it held something outside.
                    assert len(held_by(cell)) < len(parts_of(cell))
                inside = apply().square().sum()
            outside = apply().square().sum()
        # Activation checkpointing finds again what both held.
        leaves = list(cell.parameters())
        expected = torch.autograd.grad(outside, leaves, retain_graph=True)
        for a, e in zip(torch.autograd.grad(inside, leaves), expected):
            assert torch.equal(a, e)

    def test_inside_of_another_frozen_cell(self, cell, apply):
        """Activation checkpointing finds what the inner one holds."""
        other, frozen = copy.deepcopy(cell).freeze(maps(cell)), cell.freeze(maps(cell))
        with frozen:
            alone = apply().square().sum()
        with other, frozen:
            inside = apply().square().sum()
        leaves = list(cell.parameters())
        expected = torch.autograd.grad(alone, leaves, retain_graph=True)
        for a, e in zip(torch.autograd.grad(inside, leaves), expected):
            assert torch.equal(a, e)

    def test_first_use_under_no_grad_keeps_the_gradient(self, cell, apply):
        """The order of a solve: many evaluations without a graph, then one with."""
        with cell.freeze(maps(cell)):
            with torch.no_grad():
                apply()
            apply().square().sum().backward()
        for name, parameter in cell.named_parameters():
            assert parameter.grad is not None, name

    def test_backward_after_the_context(self, cell, apply):
        """The gradient is that of what was held, wherever backward runs."""
        gradients = []
        frozen = cell.freeze(maps(cell))
        for backward_inside in (True, False):
            cell.zero_grad()
            with frozen:
                loss = apply().square().sum()
                if backward_inside:
                    loss.backward(retain_graph=True)
            if not backward_inside:
                run_in_a_thread(loss.backward)
            gradients.append([p.grad.clone() for p in cell.parameters()])
        for actual, expected in zip(*gradients):
            assert torch.equal(actual, expected)

    @pytest.mark.parametrize('training', [False, True])
    @pytest.mark.parametrize('unrolled', [False, True])
    def test_nothing_stays_on_the_modules(self, cell, training, unrolled):
        solver = PicardSolver(4, 0.0)
        layer = EquilibriumLayer(cell, solver, ImplicitGradient(solver), 2)
        if unrolled:
            layer.mode = layer.unrolled
        layer.train(training)
        parameters = {name: id(p) for name, p in layer.named_parameters()}
        before = contents(layer)
        features, _ = layer(maps(cell))
        loss = sum(z.square().mean() for z in features)
        assert contents(layer) == before
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert contents(layer) == before
        assert {name: id(p) for name, p in layer.named_parameters()} == parameters
        assert held_by(cell) == []

    def test_nothing_stays_after_an_error_in_a_solve(self, cell):
        layer = EquilibriumLayer(cell, PicardSolver(4), PhantomGradient(1))
        before = contents(layer)

        for number in (1, 3):
            countdown = [None] * number

            def fail_at_last(*args, countdown=countdown):
                countdown.pop()
                if not countdown:
                    raise KeyError

            handle = cell.register_forward_hook(fail_at_last)
            with pytest.raises(KeyError):
                layer(maps(cell))
            handle.remove()
        assert held_by(cell) == []
        assert contents(layer) == before

    def test_weights_loaded_afterwards_count(self, cell):
        """What a solve held does not hide them."""
        solver = PicardSolver(4, 0.0)
        layer = EquilibriumLayer(cell, solver, PhantomGradient(1)).eval()
        other = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
            x = maps(cell)
            before = layer(x).features
            layer.load_state_dict(other.state_dict())
            for new, expected, old in zip(layer(x).features, other(x).features, before):
                assert torch.equal(new, expected)
                assert not torch.equal(new, old)

    def test_registered(self, cell):
        cfg = dict(type=type(cell).__name__, channels=cell.channels)
        if isinstance(cell, MultiscaleCell):
            cfg['num_groups'] = 4
        built = build(cfg, Cell, 'cell', registry=MODELS)
        assert type(built) is type(cell)


class Held(FreezablePart):
    """Holds a number per sample, or whatever it is given."""

    def draw(self, injections):
        return torch.arange(len(injections[0]))


class TestFreezing:
    def test_parts_of_any_depth(self):
        class Deep(Cell):
            def __init__(self):
                super().__init__()
                self.shared = Held()
                self.list = nn.ModuleList([nn.Sequential(self.shared), Held()])

            def forward(self, states, injections):
                return (states[0] + self.shared.held + self.list[1].held,)

        cell, calls = Deep(), []
        cell.shared.register_module('inner', Held())
        for part in parts_of(cell):
            draw = part.draw
            part.draw = lambda x, draw=draw: calls.append(1) or draw(x)
        x = (torch.zeros(3, 3),)
        with cell.freeze(x):
            assert cell(x, x)[0][0].tolist() == [0, 2, 4]
        assert len(calls) == 3  # a part in two places is asked once

    def test_a_part_is_held_as_it_is_unless_it_selects(self):
        part = Held()
        held = torch.zeros(3)
        assert part.select(held, torch.tensor([1])) is held

    def test_a_part_must_say_what_it_holds(self):
        with pytest.raises(NotImplementedError):
            FreezablePart().draw((torch.zeros(1),))

    def test_a_cell_must_say_what_it_computes(self):
        with pytest.raises(TypeError, match='abstract'):
            Cell()

    def test_a_cell_without_parts(self):
        class Half(Cell):
            def forward(self, states, injections):
                return (states[0] / 2 + injections[0],)

        x = (torch.ones(2, 1),)
        with Half().freeze(x) as frozen:
            assert current_frozen() is frozen
        assert current_frozen() is None
