import copy
import pickle
import shutil

import pytest
import torch
import torch._dynamo
import torch._functorch.config
from mmengine.utils import digit_version

from mdeq_mm.deq import BroydenSolver, ImplicitGradient, squared_frobenius_norm
from mdeq_mm.deq.compile import CellCompiler
from mdeq_mm.models import MDEQ

OLD = digit_version(torch.__version__) < digit_version(CellCompiler.MIN_TORCH)
needs_compile = pytest.mark.skipif(
    OLD, reason=f'compile_cell needs torch {CellCompiler.MIN_TORCH}'
)
# The compiler without machine code; a break in the graph is an error.
FAST = dict(backend='aot_eager', fullgraph=True)
# What torch asks for where several backward passes go through one compiled call.
KEEP_BUFFERS = dict(donated_buffer=False)


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
        assert_same(*models(dropout=dropout), torch.rand(2, 3, 32, 32))

    @pytest.mark.slow
    @pytest.mark.versions
    def test_solves_that_begin_in_bfloat16(self, models):
        """One graph per precision."""
        before = n_compiled()
        pair = models(evaluation_dtype='bfloat16')
        x = torch.rand(2, 3, 32, 32)
        # In training mode, where no sample leaves the batch.
        with torch.no_grad():
            expected, found = (model(x) for model in pair)
        for a, b in zip(found, expected):
            assert (a - b).norm() <= 1e-2 * b.norm()
        assert n_compiled() == before + 2

    @pytest.mark.slow
    @pytest.mark.versions
    def test_products_and_full_gradient_through_the_compiled_cell_itself(self, models):
        """The layer does without them, but they are right, also many through one."""
        _, model = models(dropout=0.3)
        cell, compiler = model.equilibrium.cell, model.equilibrium.compiler
        injections = (torch.rand(2, 8, 8, 8), torch.zeros(2, 16, 4, 4))
        states = [torch.rand_like(x).requires_grad_() for x in injections]
        y = [torch.randn_like(x) for x in injections]
        with cell.freeze(injections), torch._functorch.config.patch(KEEP_BUFFERS):
            eager = cell(states, injections)
            compiled = compiler(cell, states, injections)
            for inputs in (states, states, states, list(cell.parameters())):
                products = [
                    torch.autograd.grad(outputs, inputs, y, retain_graph=True)
                    for outputs in (compiled, eager)
                ]
                for a, b in zip(*products):
                    assert (a - b).norm() <= 1e-5 * b.norm()

    def test_compiled_once_for_every_pass_of_one_size(self, models):
        eager, compiled = models(dropout=0.3)
        before = n_compiled()
        x = torch.rand(2, 3, 32, 32)
        assert_same(eager, compiled, x)
        assert n_compiled() == before + 1
        compiled.load_state_dict(
            {name: 1.1 * value for name, value in compiled.state_dict().items()}
        )
        eager.load_state_dict(compiled.state_dict())
        assert_same(eager, compiled, x + 0.1)
        assert n_compiled() == before + 1

    @pytest.mark.slow
    @pytest.mark.versions
    def test_many_sizes_need_few_graphs(self, models):
        eager, compiled = models()
        before = n_compiled()
        for size in ((16, 16), (24, 20), (18, 26), (31, 23)):
            assert_same(eager, compiled, torch.rand(2, 3, *size))
        assert n_compiled() - before <= 2  # the second knows any size

    @pytest.mark.slow
    @pytest.mark.versions
    def test_many_models_in_one_process(self, models):
        """The compiler's limit is that of each model."""
        before = n_compiled()
        with torch._dynamo.config.patch(recompile_limit=1):
            for _ in range(3):
                _, compiled = models()
                compiled(torch.rand(2, 3, 32, 32))
        assert n_compiled() - before == 3

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

    def test_what_autograd_records_is_not_compiled(self, models):
        """So that it can be differentiated twice, as the Jacobian loss does."""
        _, compiled = models()
        compiled(torch.rand(2, 3, 32, 32))
        before = n_compiled()
        losses = []

        def estimate(layer, forward_pass):
            z, fz = forward_pass.linearize()
            losses.append(squared_frobenius_norm(fz, z, create_graph=True).mean())

        layer = compiled.equilibrium
        layer.register_pass_hook(estimate)
        for mode in (layer.configured, layer.unrolled):
            with layer.using(mode=mode):
                compiled(torch.rand(2, 3, 32, 32))
        sum(losses).backward()
        assert compiled.equilibrium.cell.branches[0][0].norm1.weight.grad.norm() > 0
        assert n_compiled() == before

    @pytest.mark.parametrize('with_cp', [False, True])
    @pytest.mark.slow
    @pytest.mark.versions
    def test_checkpointing(self, models, with_cp):
        assert_same(*models(dropout=0.3, with_cp=with_cp), torch.rand(2, 3, 32, 32))

    def test_autocast(self, models):
        pair = models()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
            expected, actual = (model(x) for model in pair)
        for a, b in zip(actual, expected):
            assert a.dtype == torch.float32
            assert (a - b).norm() <= 1e-2 * b.norm()

    @pytest.mark.slow
    @pytest.mark.versions
    def test_copies_and_state_dict(self, models):
        eager, compiled = models()
        assert list(compiled.state_dict()) == list(eager.state_dict())
        x = torch.rand(2, 3, 32, 32)
        compiled(x)
        twin = copy.deepcopy(compiled)
        eager.load_state_dict(twin.state_dict())
        with torch.no_grad():
            for model in (twin, eager):
                model.equilibrium.cell.post_fusion[0][2].bias.fill_(2)
        assert_same(eager, twin, x)
        assert (twin(x)[0] - compiled(x)[0]).abs().max() > 0.1
        compiler = pickle.loads(pickle.dumps(compiled.equilibrium.compiler))
        assert compiler.kwargs == FAST

    @pytest.mark.slow
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
            solver = BroydenSolver(max_evals=3)
            gradient = ImplicitGradient(solver)
            pair.append(
                MDEQ(
                    arch=arch,
                    compile_cell=setting,
                    forward_solver=solver,
                    gradient=gradient,
                )
            )
        assert_same(*pair, torch.rand(2, 3, 16, 16))


@pytest.mark.versions
@pytest.mark.skipif(not OLD, reason='this torch can compile a cell')
def test_old_torch():
    with pytest.raises(RuntimeError, match='compile_cell needs torch 2.5 or newer'):
        MDEQ(arch='tiny', compile_cell=dict())


@needs_compile
@pytest.mark.parametrize('wrong', [dict(modus='default'), 'default', True])
def test_wrong_arguments(wrong):
    with pytest.raises(TypeError, match='compile_cell must be a dict .* backend.* got'):
        MDEQ(arch='tiny', compile_cell=wrong)
