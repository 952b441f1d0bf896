import copy
import gc
import weakref
from dataclasses import replace
from threading import Thread

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Cell,
    Equilibrium,
    EquilibriumLayer,
    FreezablePart,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    Unrolled,
    VariationalDropout,
    ZeroGuess,
    equilibrium_layers,
    freezable_weight_norm,
)
from mdeq_mm.deq.autocast import autocast_dtype

from .example_guess import InjectionGuess
from .toys import LinearCell

INJECTIONS = (torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2))


@pytest.fixture
def layer():
    return EquilibriumLayer(
        LinearCell(),
        BroydenSolver(max_evals=30, tol=1e-6),
        ImplicitGradient(BroydenSolver(max_evals=30, tol=1e-6)),
        num_layers=3,
    )


class TestForward:
    def test_equilibrium(self, layer):
        features, forward_pass = layer(INJECTIONS)
        for feature, x, weight in zip(features, INJECTIONS, (0.5, -0.5)):
            torch.testing.assert_close(feature, x / (1 - weight), rtol=1e-4, atol=1e-4)
        assert forward_pass.solution.converged.all()

    def test_gradient(self, layer):
        features, forward_pass = layer(INJECTIONS)
        sum(feature.sum() for feature in features).backward()
        expected = [x.sum() / (1 - w) ** 2 for x, w in zip(INJECTIONS, (0.5, -0.5))]
        torch.testing.assert_close(
            layer.cell.weight.grad, torch.stack(expected), rtol=1e-4, atol=1e-4
        )
        assert forward_pass.adjoint.converged.all()

    def test_without_gradient_the_state_is_the_solvers(self, layer):
        with torch.no_grad():
            features, forward_pass = layer(INJECTIONS)
        solution = forward_pass.solution
        assert torch.equal(
            torch.cat([z.flatten(1) for z in features], 1), solution.state
        )
        assert layer.cell.n_calls == solution.n_evals.max()

    def test_frozen_cell_is_not_evaluated_once_more(self, layer):
        layer.requires_grad_(False)
        _, forward_pass = layer(INJECTIONS)
        assert layer.cell.n_calls == forward_pass.solution.n_evals.max()

    def test_gradient_of_the_injection_alone(self, layer):
        layer.requires_grad_(False)
        x = [injection.clone().requires_grad_() for injection in INJECTIONS]
        features, _ = layer(x)
        features[0].sum().backward()
        torch.testing.assert_close(x[0].grad, torch.full_like(x[0], 2.0))

    def test_converged_samples_leave_the_batch(self, layer):
        """In inference; the expanded zeros of coarse branches are not written out."""
        injections = (torch.randn(4, 3, 4, 4), torch.zeros(()).expand(4, 5, 2, 2))
        injections[0][1] = 0
        rows, strides = [], []

        def note(cell, args):
            rows.append(len(args[0][0]))
            strides.append(args[1][1].stride(0))

        layer.cell.register_forward_pre_hook(note)
        with torch.no_grad():
            features, forward_pass = layer.eval()(injections)
        assert rows == [4, *[3] * (len(rows) - 1)]
        assert set(strides) == {0}
        assert forward_pass.solution.n_evals[1] == 1
        torch.testing.assert_close(features[0], 2 * injections[0], rtol=1e-4, atol=1e-4)

    def test_what_is_held_per_sample_leaves_with_it(self):
        class Offset(FreezablePart):
            def draw(self, injections):
                return torch.arange(len(injections[0]), dtype=torch.float32)

            def select(self, held, rows):
                return held[rows]

        class OffsetCell(Cell):
            def __init__(self):
                super().__init__()
                self.offset = Offset()
                self.n_rows = set()

            def forward(self, states, injections):
                self.n_rows.add(len(states[0]))
                offset = self.offset.held.view(-1, 1)
                return (0.5 * states[0] + injections[0] * offset,)

        solver = BroydenSolver(max_evals=30, tol=1e-6)
        layer = EquilibriumLayer(OffsetCell(), solver, PhantomGradient()).eval()
        with torch.no_grad():
            features, _ = layer((torch.ones(4, 2),))
        assert layer.cell.n_rows == {3, 4}
        expected = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(4, 1).expand(4, 2)
        torch.testing.assert_close(features[0], expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize('case', ['training', 'gradients in evaluation mode'])
    def test_whole_batch_where_more_than_the_result_is_wanted(self, layer, case):
        """An inverse Jacobian, iterates and dropout masks belong to the whole batch."""
        injections = tuple(x.clone() for x in INJECTIONS)
        for x in injections:
            x[1] = 0
        rows = []
        layer.cell.register_forward_pre_hook(
            lambda cell, args: rows.append(len(args[0][0]))
        )
        training = case == 'training'
        layer.train(training)
        guess = dict(type='InverseJacobianGuess')
        gradient = ImplicitGradient(None, guess)
        with torch.set_grad_enabled(not training), layer.using(gradient=gradient):
            features, forward_pass = layer(injections)
        assert forward_pass.solution.n_evals.tolist()[1] == 1 < len(rows)
        assert set(rows) == {2}
        if not training:
            features[0].sum().backward()
            assert layer.cell.weight.grad.isfinite().all()

    def test_adjoint_from_the_inverse_of_the_forward_solve(self, layer):
        gradients = []
        for guess in ('GradientGuess', 'InverseJacobianGuess'):
            gradient = ImplicitGradient(BroydenSolver(30, tol=1e-6), dict(type=guess))
            with layer.using(gradient=gradient):
                features, forward_pass = layer(INJECTIONS)
            assert forward_pass.solution.inverse_jacobian is None
            loss = sum(feature.sum() for feature in features)
            gradients.append(torch.autograd.grad(loss, layer.cell.weight)[0])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)

    def test_deepcopy_between_forward_and_backward(self, layer):
        features, _ = layer(INJECTIONS)
        twin = copy.deepcopy(layer)
        features[0].sum().backward()
        assert layer.cell.weight.grad is not None
        assert twin.cell.weight.grad is None
        twin(INJECTIONS).features[0].sum().backward()
        torch.testing.assert_close(twin.cell.weight.grad, layer.cell.weight.grad)

    @pytest.mark.parametrize(
        'gradient', [ImplicitGradient(PicardSolver(5)), PhantomGradient(2)]
    )
    def test_saved_bytes_do_not_depend_on_the_budget(self, gradient, saved_bytes):
        totals = set()
        for max_evals in (5, 50, 500):
            layer = EquilibriumLayer(
                LinearCell(), PicardSolver(max_evals, 0.0), gradient
            )
            with saved_bytes() as saved:
                layer(INJECTIONS)
            totals.add(saved.total)
        assert len(totals) == 1
        assert totals.pop() > 0

    def test_state_dict_is_the_cells(self, layer):
        layer(INJECTIONS)
        assert list(layer.state_dict()) == ['cell.weight']


class TestFeatures:
    @pytest.mark.parametrize('training', [False, True])
    @pytest.mark.parametrize('mode', [Unrolled(2), None])
    def test_each_has_memory_of_its_own(self, layer, mode, training):
        """They can be viewed, saved and changed in place like any feature map."""
        layer.train(training)
        with layer.using(mode=mode), torch.set_grad_enabled(training):
            features, forward_pass = layer(INJECTIONS)
        before = forward_pass.state.detach().clone()
        for feature in features:
            assert feature.is_contiguous()
            assert feature.untyped_storage().nbytes() == 4 * feature.numel()
            feature.view(-1, *feature.shape[2:])
            feature.relu_()
        assert torch.equal(forward_pass.state, before)
        if training:
            sum(feature.sum() for feature in features).backward()

    @pytest.mark.parametrize('mode', [Unrolled(4), None])
    @pytest.mark.parametrize('gradient', [ImplicitGradient(), PhantomGradient()])
    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_half_precision(self, layer, dtype, gradient, mode):
        """The cell computes in it; the solver does not."""
        injections = tuple(x.to(dtype) for x in INJECTIONS)
        layer.to(dtype)
        with layer.using(mode=mode, gradient=gradient):
            features, forward_pass = layer(injections)
            sum(feature.float().sum() for feature in features).backward()
        assert all(feature.dtype == dtype for feature in features)
        assert forward_pass.state.dtype == torch.float32
        assert layer.cell.weight.grad.dtype == dtype
        if mode is None:
            for feature, x, weight in zip(features, INJECTIONS, (0.5, -0.5)):
                torch.testing.assert_close(
                    feature.float(), x / (1 - weight), rtol=0.05, atol=0.05
                )

    def test_half_injections_of_a_cell_in_float32(self, layer):
        features, _ = layer(tuple(x.half() for x in INJECTIONS))
        assert all(feature.dtype == torch.float32 for feature in features)


class TestRecording:
    """What a solve cannot be differentiated or recorded by gets one clear error."""

    MESSAGE = 'do not work through a solve'

    @staticmethod
    def total(layer):
        return lambda x: layer((x, *INJECTIONS[1:])).features[0].sum()

    @pytest.mark.parametrize(
        'solver', [PicardSolver(damping=1), AndersonSolver(), BroydenSolver()]
    )
    @pytest.mark.parametrize('gradient', [ImplicitGradient(), PhantomGradient()])
    @pytest.mark.parametrize('training', [False, True])
    def test_forward_mode(self, layer, solver, gradient, training):
        x = INJECTIONS[0]
        layer.train(training)
        with (
            layer.using(solver=solver, gradient=gradient),
            forward_ad.dual_level(),
            pytest.raises(RuntimeError, match=self.MESSAGE),
        ):
            self.total(layer)(forward_ad.make_dual(x, x))

    def test_forward_mode_with_respect_to_a_parameter(self, layer):
        weight = layer.cell.weight.detach()
        with forward_ad.dual_level():
            parameters = {'cell.weight': forward_ad.make_dual(weight, weight)}
            with pytest.raises(RuntimeError, match=self.MESSAGE):
                torch.func.functional_call(layer, parameters, (INJECTIONS,))

    @pytest.mark.parametrize('transform', [torch.func.grad, torch.func.jacrev])
    def test_transforms(self, layer, transform):
        with pytest.raises(RuntimeError, match=self.MESSAGE):
            transform(self.total(layer))(INJECTIONS[0])

    def test_batched_gradients(self, layer):
        x = INJECTIONS[0].clone().requires_grad_()
        feature = layer((x, *INJECTIONS[1:])).features[0]
        grads = torch.ones(2, *feature.shape)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(feature, x, grads, is_grads_batched=True)

    def test_the_unrolled_mode_can_be_recorded(self, layer):
        x = INJECTIONS[0]
        with layer.using(mode=Unrolled(3)):
            expected = torch.autograd.functional.jvp(self.total(layer), x, x)[1]
            _, tangent = torch.func.jvp(self.total(layer), (x,), (x,))
        torch.testing.assert_close(tangent, expected)


class TestForwardPass:
    def test_history_is_not_kept(self, layer):
        forward_pass = layer(INJECTIONS).forward_pass
        assert forward_pass.solution.inverse_jacobian is None

    def test_it_says_what_the_layer_did(self, layer):
        solver = PicardSolver(4, 0.0)
        gradient = PhantomGradient(1)
        with layer.using(solver=solver, gradient=gradient):
            forward_pass = layer(INJECTIONS).forward_pass
        assert forward_pass.mode == Equilibrium(solver, gradient)
        assert (forward_pass.guess == 0).all()
        assert forward_pass.layout.shapes == ((3, 4, 4), (5, 2, 2))

    def test_adjoint_hook(self, layer):
        seen = []
        features, forward_pass = layer(INJECTIONS)
        for name in 'ab':
            forward_pass.register_adjoint_hook(
                lambda adjoint, name=name: seen.append((name, adjoint))
            )
        assert forward_pass.adjoint is None
        features[0].sum().backward()
        assert seen == [('a', forward_pass.adjoint), ('b', forward_pass.adjoint)]
        assert forward_pass.adjoint.inverse_jacobian is None

    @pytest.mark.parametrize('mode', ['equilibrium', 'phantom', 'unrolled'])
    @pytest.mark.parametrize('differentiate', [False, True])
    def test_linearization_is_at_the_state_that_is_returned(
        self, layer, mode, differentiate
    ):
        overrides = dict(
            equilibrium={},
            phantom=dict(gradient=PhantomGradient(2)),
            unrolled=dict(mode=layer.unrolled),
        )[mode]
        with torch.set_grad_enabled(differentiate), layer.using(**overrides):
            features, forward_pass = layer(INJECTIONS)
        assert forward_pass.layout.unpack(forward_pass.state)[0].equal(features[0])
        z, fz = forward_pass.linearize()
        assert forward_pass.linearize()[1] is fz
        assert z.is_leaf
        if not (mode == 'equilibrium' and differentiate):
            assert torch.equal(z, forward_pass.state)
        # The Jacobian of the cell is diagonal, with its two weights.
        (product,) = torch.autograd.grad(fz, z, torch.ones_like(z))
        torch.testing.assert_close(product.unique(), torch.tensor([-0.5, 0.5]))

    def test_linearization_costs_no_evaluation_with_the_implicit_gradient(self, layer):
        layer(INJECTIONS)
        n_calls, layer.cell.n_calls = layer.cell.n_calls, 0
        z, fz = layer(INJECTIONS).forward_pass.linearize()
        assert layer.cell.n_calls == n_calls
        assert fz.requires_grad
        assert z.grad_fn is None


class DroppingCell(Cell):
    """A linear cell that holds a dropout mask and a weight, which autocast casts."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = freezable_weight_norm(nn.Conv2d(channels, channels, 1))
        self.dropout = VariationalDropout(0.5, channels)

    def forward(self, states, injections):
        return (0.3 * self.dropout(self.conv(states[0])) + injections[0],)


class TestFunctionOfAPass:
    """``forward_pass.f`` after the pass, wherever it is called."""

    @pytest.fixture
    def layer(self):
        solver = PicardSolver(5, 0.0)
        return EquilibriumLayer(DroppingCell(), solver, PhantomGradient(1, 1.0))

    def in_a_thread(self, function, *args):
        results = []
        thread = Thread(target=lambda: results.append(function(*args)))
        thread.start()
        thread.join()
        return results[0]

    def test_dropout_masks_are_those_of_the_pass(self, layer):
        x = (torch.randn(3, 4, 2, 2),)
        first, second = (layer(x).forward_pass for _ in range(2))
        for forward_pass in (first, second):
            z = forward_pass.solution.state
            # A phantom gradient of one full step returns one more evaluation.
            assert torch.equal(forward_pass.f(z), forward_pass.state)
            assert torch.equal(self.in_a_thread(forward_pass.f, z), forward_pass.state)
        assert not torch.equal(first.state, second.state)

    def test_inside_of_another_frozen_cell(self, layer):
        x = (torch.randn(3, 4, 2, 2),)
        forward_pass = layer(x).forward_pass
        with layer.cell.freeze(x):
            again = forward_pass.f(forward_pass.solution.state)
        assert torch.equal(again, forward_pass.state)

    @pytest.mark.parametrize('under_autocast', [False, True])
    def test_autocast_is_that_of_the_pass(self, layer, under_autocast):
        x = (torch.randn(3, 4, 2, 2),)
        with torch.autocast('cpu', torch.bfloat16, enabled=under_autocast):
            forward_pass = layer(x).forward_pass
        z = forward_pass.solution.state
        assert torch.equal(self.in_a_thread(forward_pass.f, z), forward_pass.state)
        with torch.autocast('cpu', torch.bfloat16, enabled=not under_autocast):
            assert torch.equal(forward_pass.f(z), forward_pass.state)
            assert (autocast_dtype('cpu') is None) == under_autocast
        assert autocast_dtype('cpu') is None
        forward_pass.linearize()[1].sum().backward()
        assert layer.cell.conv.bias.grad.dtype == torch.float32


@pytest.mark.versions
class TestAutocast:
    @pytest.mark.parametrize(
        'overrides',
        [
            dict(gradient=ImplicitGradient(PicardSolver(4))),
            dict(gradient=PhantomGradient(2)),
            dict(mode=Unrolled(3)),
        ],
        ids=['implicit', 'phantom', 'unrolled'],
    )
    def test_every_parameter_has_a_gradient(self, overrides):
        """Autocast keeps its casts of weights, also those of a solve without a graph.

        torch 2.1 then gives the weight no gradient; torch 2.11 does.
        """

        class ConvCell(Cell):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(4, 4, 1)

            def forward(self, states, injections):
                return (0.3 * self.conv(states[0]) + injections[0],)

        layer = EquilibriumLayer(ConvCell(), PicardSolver(4), PhantomGradient())
        with torch.autocast('cpu', torch.bfloat16), layer.using(**overrides):
            features, _ = layer((torch.randn(2, 4, 3, 3),))
        features[0].square().sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad.abs().max() > 0
            assert parameter.grad.dtype == torch.float32

    def test_samples_that_leave_the_batch(self):
        """The function of the rest runs under autocast, too."""
        layer = EquilibriumLayer(
            DroppingCell(), PicardSolver(20, 1e-2), PhantomGradient(1)
        ).eval()
        x, rows = torch.randn(3, 4, 2, 2), []
        x[1] = 0
        with torch.no_grad():
            layer.cell.conv.bias.zero_()
            layer.cell.register_forward_pre_hook(
                lambda cell, args: rows.append(len(args[0][0]))
            )
            expected = layer((x,)).features[0]
            with torch.autocast('cpu', torch.bfloat16):
                actual = layer((x,)).features[0]
        assert set(rows) >= {2, 3}
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() <= 0.05 * expected.norm()


class TestPassHook:
    @pytest.mark.parametrize('unrolled', [False, True])
    @pytest.mark.parametrize('differentiate', [False, True])
    def test_hook(self, layer, unrolled, differentiate):
        seen = []

        def hook(hooked, forward_pass):
            assert hooked is layer
            seen.append(forward_pass)

        handle = layer.register_pass_hook(hook)
        if unrolled:
            layer.mode = layer.unrolled
        with torch.set_grad_enabled(differentiate):
            features, forward_pass = layer(INJECTIONS)
        assert seen == [forward_pass]
        assert (forward_pass.solution is None) == unrolled
        for actual, expected in zip(
            forward_pass.layout.unpack(forward_pass.state), features
        ):
            assert torch.equal(actual, expected)
        handle.remove()
        layer(INJECTIONS)
        assert len(seen) == 1

    def test_a_hook_that_removes_itself(self, layer):
        seen = []

        def once(layer, forward_pass):
            handle.remove()
            seen.append(1)

        handle = layer.register_pass_hook(once)
        layer.register_pass_hook(lambda *args: seen.append(2))
        layer(INJECTIONS)
        layer(INJECTIONS)
        assert seen == [1, 2, 2]

    def test_handle_is_a_context(self, layer):
        seen = []
        with layer.register_pass_hook(lambda *args: seen.append(args)):
            layer(INJECTIONS)
        layer(INJECTIONS)
        assert len(seen) == 1

    def test_observing_ends_with_its_context(self, layer):
        seen = []
        with layer.observing(lambda *_: seen.append('outer')):
            with layer.observing(lambda *_: seen.append('inner')):
                layer(INJECTIONS)
            layer(INJECTIONS)
        layer(INJECTIONS)
        assert seen == ['outer', 'inner', 'outer']

    def test_observing_sees_the_calling_thread_alone(self, layer):
        seen = []
        with layer.observing(lambda hooked, passed: seen.append((hooked, passed))):
            thread = Thread(target=layer, args=(INJECTIONS,))
            thread.start()
            thread.join()
            forward_pass = layer(INJECTIONS).forward_pass
        layer(INJECTIONS)
        assert seen == [(layer, forward_pass)]
        assert not layer._pass_hooks

    def test_each_call_has_its_own_record(self, layer):
        passes = []
        layer.register_pass_hook(lambda layer, record: passes.append(record))
        with layer.using(keep=(1,)):
            outputs = [layer([scale * x for x in INJECTIONS]) for scale in (1, 2)]
        with torch.no_grad():
            layer(INJECTIONS)
        assert passes[:2] == [output.forward_pass for output in outputs]
        first, second = (p.solution.iterates[1] for p in passes[:2])
        assert first is not second
        outputs[0].features[0].sum().backward()
        assert passes[0].adjoint is not None
        assert passes[1].adjoint is None


class TestUsing:
    def test_solver_and_gradient(self, layer):
        solver, gradient = PicardSolver(2, 0.0), PhantomGradient(1)
        with layer.using(solver=solver, gradient=gradient):
            assert layer.mode == Equilibrium(solver, gradient)
            assert layer(INJECTIONS).forward_pass.solution.n_evals.tolist() == [2, 2]
        assert layer.mode is layer.configured
        assert layer(INJECTIONS).forward_pass.mode is layer.configured

    def test_configs(self, layer):
        with layer.using(
            solver=dict(type='PicardSolver', max_evals=2),
            gradient=dict(type='PhantomGradient'),
            initial_guess=dict(type='InjectionGuess'),
        ):
            forward_pass = layer(INJECTIONS).forward_pass
        assert forward_pass.mode.solver == PicardSolver(2)
        assert isinstance(forward_pass.mode.gradient, PhantomGradient)
        assert (forward_pass.guess != 0).any()

    @pytest.mark.parametrize(
        ('override', 'message'),
        [
            (dict(solver=dict(type='Newton')), "solver: unknown.*'Newton'"),
            (dict(gradient=dict(type='Newton')), "gradient: unknown.*'Newton'"),
            (dict(initial_guess=dict(type='Last')), "initial_guess: unknown.*'Last'"),
        ],
    )
    def test_wrong_config(self, layer, override, message):
        with pytest.raises(ValueError, match=message), layer.using(**override):
            pass
        assert layer.mode is layer.configured

    def test_initial_guess(self, layer):
        before = layer.initial_guess
        with layer.using(initial_guess=InjectionGuess()):
            guess = layer(INJECTIONS).forward_pass.guess
        assert torch.equal(guess, torch.cat([x.flatten(1) for x in INJECTIONS], 1))
        assert layer.initial_guess is before
        assert (layer(INJECTIONS).forward_pass.guess == 0).all()

    def test_the_guess_in_use_takes_note_of_the_solve(self, layer):
        noted = []

        class Watched(ZeroGuess):
            def update(self, state, layout):
                noted.append(state)

        with layer.using(initial_guess=Watched()):
            forward_pass = layer(INJECTIONS).forward_pass
        assert noted[0] is forward_pass.solution.state
        layer(INJECTIONS)
        assert len(noted) == 1

    def test_iterates_are_kept_in_training(self, layer):
        with layer.using(keep=(2,)):
            assert set(layer(INJECTIONS).forward_pass.solution.iterates) == {2}
            layer.eval()
            assert layer(INJECTIONS).forward_pass.solution.iterates == {}
            with torch.no_grad():
                assert layer(INJECTIONS).forward_pass.solution.iterates == {}
        assert layer.train()(INJECTIONS).forward_pass.solution.iterates == {}

    def test_the_last_that_began_counts(self, layer):
        outer, inner = PicardSolver(2, 0.0), PicardSolver(3, 0.0)
        with layer.using(solver=outer, keep=(1, 2)):
            with layer.using(solver=inner, keep=()):
                assert layer.mode.solver is inner
                assert layer(INJECTIONS).forward_pass.solution.iterates == {}
            assert layer.mode.solver is outer
            with layer.using(gradient=PhantomGradient(1)):
                assert layer.mode.solver is outer
        assert layer.mode is layer.configured

    def test_mode_and_solver(self, layer):
        solver = PicardSolver(2, 0.0)
        with layer.using(mode=layer.unrolled, solver=solver):
            assert layer.mode is layer.unrolled
            with layer.using(mode=layer.configured):
                # The override that began first says nothing about this mode.
                assert layer.mode == layer.configured
                with layer.using(solver=solver):
                    assert layer.mode == replace(layer.configured, solver=solver)

    def test_it_ends_after_an_exception(self, layer):
        with pytest.raises(KeyError), layer.using(mode=Unrolled(2), keep=(1,)):
            raise KeyError
        assert layer.mode is layer.configured
        assert layer(INJECTIONS).forward_pass.solution.iterates == {}

    def test_an_exception_in_the_cell(self, layer):
        def fail(*args):
            raise KeyError

        handle = layer.cell.register_forward_pre_hook(fail)
        with pytest.raises(KeyError), layer.using(solver=PicardSolver(2)):
            layer(INJECTIONS)
        handle.remove()
        assert layer(INJECTIONS).forward_pass.mode is layer.configured

    def test_two_that_end_in_the_order_they_began(self, layer):
        first = layer.using(solver=PicardSolver(2, 0.0))
        second = layer.using(solver=PicardSolver(3, 0.0))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert layer.mode.solver.max_evals == 3
        second.__exit__(None, None, None)
        assert layer.mode is layer.configured

    def test_only_this_layer(self, layer):
        other = copy.deepcopy(layer)
        with layer.using(mode=layer.unrolled):
            copied = copy.deepcopy(layer)
            for twin in (other, copied):
                assert twin.mode is twin.configured

    def test_nothing_is_kept_alive(self, layer):
        """Neither the layer nor what it was given outlives the context."""
        gc.collect()
        gc.disable()
        try:
            guess = InjectionGuess()
            alive = [weakref.ref(layer.cell), weakref.ref(guess)]
            own = EquilibriumLayer(LinearCell(), PicardSolver(), PhantomGradient())
            alive.append(weakref.ref(own))
            with own.using(initial_guess=guess):
                own(INJECTIONS)
            del own, guess
            assert alive[1]() is None
            assert alive[2]() is None
        finally:
            gc.enable()


class TestTrains:
    def test_trains(self, layer):
        assert layer.trains
        assert not layer.eval().trains
        layer.train().requires_grad_(False)
        assert not layer.trains
        layer.cell.weight.requires_grad_()
        assert layer.trains


class TestConstruction:
    def test_wrong_solver(self):
        with pytest.raises(ValueError, match="forward_solver: unknown.*'Newton'"):
            EquilibriumLayer(LinearCell(), dict(type='Newton'), ImplicitGradient())
        with pytest.raises(ValueError, match="gradient: unknown.*'BroydenSolver'"):
            EquilibriumLayer(LinearCell(), BroydenSolver(), dict(type='BroydenSolver'))

    def test_wrong_cell(self):
        with pytest.raises(TypeError, match='cell must be a Cell, got Linear'):
            EquilibriumLayer(nn.Linear(2, 2), BroydenSolver(), ImplicitGradient())

    def test_wrong_num_layers(self):
        with pytest.raises(ValueError, match='num_layers must .* at least 1, got 0'):
            EquilibriumLayer(LinearCell(), PicardSolver(), PhantomGradient(), 0)

    def test_layers_of_a_model(self, layer):
        model = nn.ModuleDict(dict(a=nn.Linear(1, 1), b=layer, c=copy.deepcopy(layer)))
        assert equilibrium_layers(model) == [model['b'], model['c']]
        assert equilibrium_layers(layer) == [layer]
        assert equilibrium_layers(model['a']) == []
