import copy
import pickle
import shutil

import pytest
import torch
from mmengine.utils import digit_version

from mdeq_mm.deq import PhantomGradient, squared_frobenius_norm
from mdeq_mm.deq.compiled import CellCompiler
from mdeq_mm.models import MDEQ

OLD = digit_version(torch.__version__) < digit_version(CellCompiler.MIN_TORCH)
needs_compile = pytest.mark.skipif(
    OLD, reason=f'compile_cell needs torch {CellCompiler.MIN_TORCH}'
)
# All of the compiler but the generation of machine code; breaks in the graph are errors.
FAST = dict(backend='aot_eager', fullgraph=True)


@pytest.fixture
def models(calm):
    """Makes the same model twice, not compiled and compiled."""
    torch._dynamo.reset()

    def make(compile_cell=FAST, **kwargs):
        pair = []
        for setting in (None, compile_cell):
            torch.manual_seed(0)
            arch = dict(channels=(8, 16), num_groups=4, expansion=2)
            pair.append(calm(MDEQ(arch=arch, compile_cell=setting, **kwargs)))
        return pair

    return make


def outputs_and_gradients(model, x):
    """Of the whole network, with the same dropout masks whenever it is called."""
    torch.manual_seed(5)
    model.zero_grad()
    outputs = model(x)
    sum(output.sin().sum() for output in outputs).backward()
    return outputs, [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(eager, compiled, x):
    results = [outputs_and_gradients(model, x) for model in (eager, compiled)]
    for expected, actual in zip(*results):
        for a, b in zip(actual, expected):
            assert (a - b).norm() <= 1e-5 * b.norm().clamp_min(1e-3)


def n_compiled():
    return torch._dynamo.utils.counters['stats']['unique_graphs']


@needs_compile
class TestCompiledCell:
    @pytest.mark.parametrize('dropout', [0.0, 0.3])
    def test_forward_and_full_gradient(self, models, dropout):
        """The adjoint solve makes many products through one compiled evaluation."""
        assert_same(*models(dropout=dropout), torch.rand(2, 3, 32, 32))

    def test_gradient_without_products_first(self, models):
        """A backward that frees its graph must not spoil those that keep theirs."""
        eager, compiled = models()
        kept = [model.equilibrium.gradient for model in (eager, compiled)]
        x = torch.rand(2, 3, 32, 32)
        for model in (eager, compiled):
            model.equilibrium.gradient = PhantomGradient(steps=2)
        assert_same(eager, compiled, x)
        for model, gradient in zip((eager, compiled), kept):
            model.equilibrium.gradient = gradient
        assert_same(eager, compiled, x)

    def test_products_repeat(self, models):
        _, compiled = models(dropout=0.3)
        products = []

        def compute(layer, solve):
            z, fz = solve.linearize()
            assert solve.compiled
            y = torch.randn_like(z)
            for _ in range(3):
                products.extend(torch.autograd.grad(fz, z, y, retain_graph=True))
            expected = torch.autograd.grad(solve.f(z), z, y)
            products.extend(expected)

        compiled.equilibrium.register_solve_hook(compute)
        compiled(torch.rand(2, 3, 32, 32))
        assert torch.equal(products[0], products[1])
        assert torch.equal(products[0], products[2])
        torch.testing.assert_close(products[0], products[3], rtol=1e-5, atol=1e-5)

    def test_compiled_once_for_every_pass_of_one_size(self, models):
        eager, compiled = models(dropout=0.3)
        before = n_compiled()
        x = torch.rand(2, 3, 32, 32)
        assert_same(eager, compiled, x)
        assert n_compiled() == before + 2  # with gradients and without
        compiled.load_state_dict(
            {name: 1.1 * value for name, value in compiled.state_dict().items()}
        )
        eager.load_state_dict(compiled.state_dict())
        assert_same(eager, compiled, x + 0.1)
        assert n_compiled() == before + 2

    def test_many_sizes_need_few_graphs(self, models):
        eager, compiled = models()
        before = n_compiled()
        for size in ((32, 32), (48, 40), (36, 52), (61, 47), (80, 64), (96, 44)):
            assert_same(eager, compiled, torch.rand(2, 3, *size))
        assert n_compiled() - before <= 6

    def test_inference_of_samples_that_leave_the_batch(self, models):
        for model in (pair := models()):
            model.eval()
        x = torch.rand(3, 3, 32, 32) * torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1)
        with torch.no_grad():
            expected, actual = (model(x) for model in pair)
        for a, b in zip(actual, expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_folded_weights(self, models):
        eager, compiled = models()
        compiled.switch_to_deploy()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(compiled.eval()(x), eager.eval()(x))

    @pytest.mark.parametrize('shallow', [False, True])
    def test_jacobian_loss_uses_the_cell_itself(self, models, shallow):
        """What is compiled cannot be differentiated twice."""
        pair = models()
        gradients = []
        for model in pair:
            model.equilibrium.shallow = shallow
            losses = []

            def estimate(layer, solve, losses=losses):
                z, fz = solve.linearize(create_graph=True)
                torch.manual_seed(3)
                losses.append(squared_frobenius_norm(fz, z, create_graph=True).mean())

            model.equilibrium.register_solve_hook(estimate)
            torch.manual_seed(4)
            model(torch.rand(2, 3, 32, 32))
            cell = model.equilibrium.cell.parameters()
            gradients.append(torch.autograd.grad(losses[0], cell, allow_unused=True))
        for expected, actual in zip(*gradients):
            assert (expected is None) == (actual is None)
            if expected is not None:
                assert (actual - expected).norm() <= 1e-4 * expected.norm() + 1e-7

    def test_autocast(self, models):
        eager, compiled = models()
        x = torch.rand(2, 3, 32, 32)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            for model in (eager, compiled):
                model.train()
                outputs = model(x)
                assert outputs[0].dtype == torch.float32
                sum(output.sum() for output in outputs).backward()
        for a, b in zip(compiled.parameters(), eager.parameters()):
            assert (a.grad - b.grad).norm() <= 0.2 * b.grad.norm().clamp_min(1e-2)

    def test_copies_and_state_dict(self, models):
        eager, compiled = models()
        assert list(compiled.state_dict()) == list(eager.state_dict())
        x = torch.rand(2, 3, 32, 32)
        compiled(x)
        for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
            assert twin.equilibrium.compiler.kwargs == FAST
            with torch.no_grad():
                twin.equilibrium.cell.post_fusion[0][2].bias.fill_(2)
            assert (twin(x)[0] - compiled(x)[0]).abs().max() > 0.1

    @pytest.mark.skipif(
        shutil.which('g++') is None, reason='torch.compile needs a C++ compiler'
    )
    def test_machine_code(self, models):
        """With the default backend, one branch for the sake of time."""
        torch._dynamo.reset()
        pair = []
        for setting in (None, dict(fullgraph=True)):
            torch.manual_seed(0)
            arch = dict(channels=(8,), num_groups=2, expansion=1)
            pair.append(MDEQ(arch=arch, compile_cell=setting, num_layers=2))
            pair[-1].equilibrium.solver.max_evals = 3
            pair[-1].equilibrium.gradient.solver.max_evals = 3
        assert_same(*pair, torch.rand(2, 3, 16, 16))


@pytest.mark.skipif(not OLD, reason='this torch can compile a cell')
def test_old_torch():
    with pytest.raises(RuntimeError, match='compile_cell needs torch 2.5 or newer'):
        MDEQ(arch='tiny', compile_cell=dict())


@needs_compile
@pytest.mark.parametrize('wrong', [dict(modus='default'), 'default', True])
def test_wrong_arguments(wrong):
    with pytest.raises(TypeError, match='compile_cell must be a dict .* backend.* got'):
        MDEQ(arch='tiny', compile_cell=wrong)
