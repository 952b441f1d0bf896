"""Parity with the official implementation, and the reading of its state dicts."""

import mmpretrain.models
import mmseg.models
import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn import functional as F

from mdeq_mm.benchmark.problems import (
    equilibrium_problems,
    evaluations_to,
    residuals,
)
from mdeq_mm.benchmark.solvers import own_solvers, torchdeq_solvers
from mdeq_mm.checkpoints import (
    check_official_state_dict,
    convert_official_state_dict,
)
from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    PicardSolver,
    spectral_radius,
    squared_frobenius_norm,
)

# Tight enough that what remains is the rounding of the reference.
TIGHT = dict(type='BroydenSolver', max_evals=200, tol=1e-14, stop_mode='rel', memory=60)
FOLDED_BIAS = 'last_layer.0.bias'


def build_model(golden):
    """The whole stock model around MDEQ, with the official weights, in float64."""
    config = golden.config
    backbone = dict(
        type='MDEQ',
        arch=dict(
            channels=config['num_channels'],
            expansion=config['expansion'],
            num_groups=config['num_groups'],
            post_norm_affine=config['post_gn_affine'],
            downsample_times=config['downsample_times'],
        ),
        num_layers=config['num_layers_shallow'],
        norm_cfg=dict(type='BN', momentum=config['bn_momentum']),
        forward_solver=TIGHT,
        gradient=dict(type='ImplicitGradient', solver=TIGHT),
    )
    if golden.task == 'classification':
        cfg = dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=[
                dict(
                    type='MDEQFuse',
                    in_channels=config['num_channels'],
                    head_channels=config['head_channels'],
                    out_channels=config['final_chansize'],
                ),
                dict(type='GlobalAveragePooling'),
            ],
            head=dict(
                type='LinearClsHead',
                in_channels=config['final_chansize'],
                num_classes=config['num_classes'],
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
        scope, build = 'mmpretrain', mmpretrain.models.build_classifier
    else:
        width = sum(config['num_channels'])
        cfg = dict(
            type='EncoderDecoder',
            backbone=backbone,
            decode_head=dict(
                type='FCNHead',
                in_channels=config['num_channels'],
                in_index=list(range(golden.n_branches)),
                input_transform='resize_concat',
                channels=width,
                kernel_size=1,
                num_convs=1,
                concat_input=False,
                dropout_ratio=0,
                num_classes=config['num_classes'],
                norm_cfg=dict(type='BN', momentum=config['bn_momentum']),
                align_corners=True,
            ),
            test_cfg=dict(mode='whole'),
        )
        scope, build = 'mmseg', mmseg.models.build_segmentor
    with DefaultScope.overwrite_default_scope(scope):
        model = build(cfg).double().eval()
    converted = convert_official_state_dict(golden.state, golden.task)
    model.load_state_dict(converted, strict=True)
    return model


def logits_of(model, golden):
    """Class scores, at stride 4 for segmentation."""
    image = golden.ref['input/x']
    if golden.task == 'classification':
        features = model.extract_feat(image)
        return model.head(features)
    return model.decode_head(model.extract_feat(image))


def loss_of(logits, golden):
    labels = golden.ref['input/labels']
    if golden.task == 'segmentation':
        logits = F.interpolate(
            logits, labels.shape[1:], mode='bilinear', align_corners=True
        )
    return F.cross_entropy(logits, labels, ignore_index=255)


def here(golden):
    """Official name of every parameter -> its name in this project."""
    names = {
        name: torch.full((), float(index))
        for index, name in enumerate(golden.state)
        if name != FOLDED_BIAS
    }
    converted = convert_official_state_dict(names, golden.task)
    numbers = {int(value.item()): name for name, value in converted.items()}
    return {
        name: numbers[index]
        for index, name in enumerate(golden.state)
        if name != FOLDED_BIAS
    }


def branches(golden, prefix):
    return [golden.ref[f'{prefix}/{i}'] for i in range(golden.n_branches)]


def forward_pass_of(model, function, *args):
    """Calls a function that runs the model once. Returns the record of the pass."""
    passes = []

    def note(layer, forward_pass):
        passes.append(forward_pass)

    with model.backbone.equilibrium.register_pass_hook(note):
        result = function(*args)
    (forward_pass,) = passes
    return forward_pass, result


def assert_close(actual, expected, atol):
    """Compares with an absolute tolerance alone."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture(scope='module')
def model(golden):
    return build_model(golden)


@pytest.fixture(autouse=True)
def _restore(model):
    yield
    model.eval()
    model.zero_grad()


class TestParity:
    @pytest.mark.versions
    def test_one_application(self, golden, model):
        cell = model.backbone.equilibrium.cell
        states = [z.requires_grad_() for z in branches(golden, 'f_once/z')]
        injections = [u.requires_grad_() for u in branches(golden, 'f_once/u')]
        outputs = cell(states, injections)
        for actual, expected in zip(outputs, branches(golden, 'f_once/out')):
            assert_close(actual, expected, atol=1e-12)
        products = torch.autograd.grad(
            outputs, [*states, *injections], branches(golden, 'f_once/v')
        )
        expected = branches(golden, 'f_once/vjp_z')
        if 'f_once/vjp_u/0' in golden.ref:
            expected += branches(golden, 'f_once/vjp_u')
        for actual, reference in zip(products, expected):
            assert relative_error(actual, reference) <= 1e-6

    @pytest.mark.slow
    def test_spectral_radius(self, golden, model):
        with torch.no_grad():
            forward_pass, _ = forward_pass_of(
                model, model.backbone, golden.ref['input/x']
            )
        z, fz = forward_pass.linearize()
        radius = spectral_radius(fz, z)
        expected = golden.ref['jac/spectral_radius']
        torch.testing.assert_close(radius, expected, rtol=1e-2, atol=0)

    @pytest.mark.slow
    def test_frobenius_norm(self, golden, model):
        """Within three standard errors of 500 draws."""
        with torch.no_grad():
            forward_pass, _ = forward_pass_of(
                model, model.backbone, golden.ref['input/x']
            )
        z, fz = forward_pass.linearize()
        draws = torch.stack([squared_frobenius_norm(fz, z, 1) for _ in range(500)])
        if 'jac/tr_JtJ' in golden.ref:
            exact = golden.ref['jac/tr_JtJ']
        else:
            exact, draws = golden.ref['jac/tr_JtJ_sample0'].view(1), draws[:, :1]
        error = (draws.mean(0) - exact).abs()
        assert (error < 3 * draws.std(0) / len(draws) ** 0.5).all()

    def test_injection(self, golden, model):
        backbone = model.backbone
        actual = backbone.injection(backbone.stem(golden.ref['input/x']))
        assert_close(actual, golden.ref['stem/injection0'], atol=1e-12)

    @pytest.mark.versions
    def test_unrolled(self, golden, model):
        layer = model.backbone.equilibrium
        with layer.using(mode=layer.unrolled):
            logits = logits_of(model, golden)
        assert_close(logits, golden.ref['shallow/logits'], atol=1e-11)
        loss = loss_of(logits, golden)
        assert_close(loss, golden.ref['shallow/loss'], atol=1e-11)
        loss.backward()
        self.check_gradient_norms(golden, model, 'shallow/grad_l2', 1e-9)

    def test_equilibrium(self, golden, model):
        with torch.no_grad():
            forward_pass, logits = forward_pass_of(model, logits_of, model, golden)
        features = forward_pass.layout.unpack(forward_pass.state)
        for actual, expected in zip(features, branches(golden, 'eq/z')):
            assert_close(actual, expected, atol=1e-9)
        assert_close(logits, golden.ref['eq/logits'], atol=1e-9)
        assert_close(loss_of(logits, golden), golden.ref['eq/loss'], atol=1e-9)

    @pytest.mark.slow
    def test_picard_finds_the_same_equilibrium(self, golden, model):
        layer = model.backbone.equilibrium
        with torch.no_grad(), layer.using(solver=PicardSolver(200, 1e-12)):
            features = model.backbone(golden.ref['input/x'])
        for actual, expected in zip(features, branches(golden, 'eq/z')):
            assert_close(actual, expected, atol=1e-9)

    @pytest.mark.versions
    @pytest.mark.slow
    def test_gradient_of_every_parameter(self, golden, model):
        """And the adjoint solution behind them."""
        forward_pass, logits = forward_pass_of(model, logits_of, model, golden)
        assert_close(logits, golden.ref['eq/logits'], atol=1e-9)
        loss_of(logits, golden).backward()
        parameters = dict(model.named_parameters())
        names = here(golden)
        assert {names[name] for name in golden.grad if name in names} == set(parameters)
        for name, expected in golden.grad.items():
            if name != FOLDED_BIAS:
                actual = parameters[names[name]].grad
                assert relative_error(actual, expected) < 1e-6, name
        self.check_gradient_norms(golden, model, 'grad/l2', 1e-9)

        adjoint, g = (
            torch.cat([x.flatten(1) for x in branches(golden, prefix)], dim=1)
            for prefix in ('grad/adjoint', 'grad/dl_dz')
        )
        # The adjoint system is solved for gradients of unit norm.
        adjoint = adjoint / g.norm(dim=1, keepdim=True)
        assert relative_error(forward_pass.adjoint.state, adjoint) <= 1e-6

    @pytest.mark.slow
    def test_batch_statistics(self, golden, model):
        model.train()
        logits = logits_of(model, golden)
        assert_close(logits, golden.ref['trainbn/logits'], atol=1e-8)
        loss = loss_of(logits, golden)
        assert_close(loss, golden.ref['trainbn/loss'], atol=1e-8)
        loss.backward()
        # Behind a batch norm the gradient of a bias is rounding and nothing else.
        self.check_gradient_norms(
            golden, model, 'trainbn/grad_l2', 1e-9, negligible=1e-12
        )
        buffers = dict(model.named_buffers())
        names = here(golden)
        prefix = 'trainbn/buffers/'
        updated = [key[len(prefix) :] for key in golden.ref if key.startswith(prefix)]
        assert updated
        for name in updated:
            expected = golden.ref[prefix + name]
            if names[name] == 'decode_head.convs.0.bn.running_mean':
                expected = expected - golden.state[FOLDED_BIAS]
            assert_close(buffers[names[name]], expected, atol=1e-10)
        model.load_state_dict(convert_official_state_dict(golden.state))

    @staticmethod
    def check_gradient_norms(golden, model, key, tolerance, negligible=0.0):
        parameters = dict(model.named_parameters())
        names = here(golden)
        for name, expected in zip(golden.ref['param_names'], golden.ref[key]):
            if name != FOLDED_BIAS:
                actual = parameters[names[str(name)]].grad.norm()
                error = (actual - expected).abs()
                assert error <= tolerance * expected + negligible, name

    @pytest.mark.parametrize('stop_mode', ['abs', 'rel'])
    @pytest.mark.parametrize('precision', ['f64', 'f32'])
    def test_broyden_trace(self, golden, model, precision, stop_mode):
        """The official Broyden's residuals over the whole batch, step by step."""
        expected = golden.ref[f'trace/{precision}/broyden/{stop_mode}/abs_trace']
        n_evals = len(expected) + 1  # the official trace leaves out the first
        solver = BroydenSolver(n_evals, 0.0, 'abs', memory=n_evals)
        dtype = torch.float64 if precision == 'f64' else torch.float32
        image = golden.ref['input/x'].to(dtype)
        model.to(dtype)
        with torch.no_grad(), model.backbone.equilibrium.using(solver=solver):
            forward_pass, _ = forward_pass_of(model, model.backbone, image)
        model.double().load_state_dict(convert_official_state_dict(golden.state))
        trace = forward_pass.solution.trace.double().norm(dim=1)[1:]
        tolerance = 1e-10 if precision == 'f64' else 2e-2
        torch.testing.assert_close(trace, expected, rtol=tolerance, atol=0)

    @pytest.mark.parametrize('history_dtype', [None, 'bfloat16'])
    @pytest.mark.parametrize('name', ['broyden', 'anderson'])
    @pytest.mark.slow
    def test_no_more_evaluations_than_the_official_solvers(
        self, golden, model, name, history_dtype
    ):
        """With default settings, until the relative residual of the batch is 1e-4."""
        expected = golden.ref[f'trace/f64/{name}/abs/rel_trace']
        n_before = dict(broyden=1, anderson=2)[name]  # which the trace leaves out
        cls = dict(broyden=BroydenSolver, anderson=AndersonSolver)[name]
        solver = cls(len(expected) + n_before, 0.0, history_dtype=history_dtype)
        problem = equilibrium_problems(model.backbone, golden.ref['input/x'])['forward']
        observed = []

        def f(z):
            fz = problem.f(z)
            observed.append((fz - z).norm() / fz.norm())
            return fz

        with torch.no_grad():
            solver.solve(f, problem.start)
        for tol in (1e-2, 1e-3, 1e-4):
            theirs = (expected <= tol).nonzero()
            if len(theirs):  # else not even the whole budget was enough
                ours = (torch.stack(observed) <= tol).nonzero()
                assert ours[0].item() + 1 <= theirs[0].item() + 1 + n_before

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ('name', 'memory'), [('anderson', None), ('broyden', 10), ('broyden', 60)]
    )
    def test_no_more_evaluations_than_torchdeq(self, golden, model, name, memory):
        """Of as much memory, until the slowest sample has a relative residual."""
        pytest.importorskip('torchdeq')

        solve = own_solvers(60, memory)[f'{name.title()}Solver']
        reference = torchdeq_solvers(60, memory)[f'torchdeq {name}']
        problems = equilibrium_problems(model.backbone, golden.ref['input/x'])
        for problem in problems.values():
            ours, theirs = residuals(solve, problem), residuals(reference, problem)
            for tol in (1e-2, 1e-3, 1e-4):
                mine, other = evaluations_to(ours, tol), evaluations_to(theirs, tol)
                assert None not in mine
                assert None in other or max(mine) <= max(other)

    def test_default_settings(self, golden, model):
        """With the official budgets the logits are as near as the official ones."""
        config = golden.config
        solver = BroydenSolver(config['f_thres'], config['eps'], config['stop_mode'])
        with torch.no_grad(), model.backbone.equilibrium.using(solver=solver):
            logits = logits_of(model, golden)
        reference = golden.ref['default/broyden/logits_f64']
        assert_close(reference, golden.ref['eq/logits'], atol=4e-4)
        assert_close(logits, golden.ref['eq/logits'], atol=4e-4)


class TestConvert:
    def test_the_task_is_told_by_the_keys(self, golden):
        told = convert_official_state_dict(golden.state)
        named = convert_official_state_dict(golden.state, task=golden.task)
        assert list(told) == list(named)

    def test_every_tensor_but_one_is_passed_on(self, golden):
        converted = convert_official_state_dict(golden.state)
        originals = {id(tensor) for tensor in golden.state.values()}
        changed = [name for name in converted if id(converted[name]) not in originals]
        if golden.task == 'classification':
            assert changed == []
            assert len(converted) == len(golden.state)
        else:
            assert changed == ['decode_head.convs.0.bn.running_mean']
            assert len(converted) == len(golden.state) - 1

    def test_the_argument_is_left_as_it_is(self, golden):
        before = dict(golden.state)
        convert_official_state_dict(golden.state)
        assert list(before) == list(golden.state)
        assert all(before[name] is golden.state[name] for name in before)

    def test_unknown_task(self, golden):
        with pytest.raises(ValueError, match="task must be one of .*, got 'detection'"):
            convert_official_state_dict(golden.state, task='detection')

    def test_wrong_task(self, golden):
        wrong = {'classification': 'segmentation', 'segmentation': 'classification'}
        with pytest.raises(
            ValueError, match=f'but the keys are those of {golden.task}'
        ):
            convert_official_state_dict(golden.state, task=wrong[golden.task])

    def test_foreign_keys_are_named(self, golden):
        state = {**golden.state, 'fullstage.oddity.weight': torch.zeros(1)}
        with pytest.raises(ValueError, match=r'fullstage\.oddity\.weight'):
            convert_official_state_dict(state)

    def test_not_a_whole_model(self):
        with pytest.raises(ValueError, match='has neither: stage0.0.weight'):
            convert_official_state_dict({'stage0.0.weight': torch.zeros(1)})

    def test_both_heads(self, golden):
        state = {**golden.state, 'classifier.weight': 0, 'last_layer.3.weight': 0}
        with pytest.raises(ValueError, match='has both'):
            convert_official_state_dict(state)


class TestCheck:
    def test_fits(self, golden, model):
        check_official_state_dict(golden.state, model)

    def test_every_problem_is_named(self, golden, model):
        names = list(golden.state)
        gone, changed = names[1::9], names[2::9]
        state = {name: golden.state[name] for name in names if name not in gone}
        for name in changed:
            shape = [size + 1 for size in state[name].shape] or [1]
            state[name] = torch.zeros(shape)
        added = ['fullstage.oddity.weight', 'stage9.0.weight']
        state.update({name: torch.zeros(1) for name in added})
        with pytest.raises(ValueError, match='tensors do not fit the model') as error:
            check_official_state_dict(state, model)
        listed = [line.split() for line in str(error.value).splitlines()[1:]]

        def named(kind):
            return {words[1] for words in listed if words[0] == kind}

        assert named('missing:') == set(gone)
        assert {words[2] for words in listed if words[0] == 'too'} == set(added)
        assert named('misshapen:') == set(changed)

    def test_the_bias_that_is_folded_is_needed(self, golden, model):
        if golden.task == 'classification':
            pytest.skip('has no such bias')
        state = {k: v for k, v in golden.state.items() if k != FOLDED_BIAS}
        with pytest.raises(ValueError, match=rf'1 of .*\n  missing: {FOLDED_BIAS}$'):
            check_official_state_dict(state, model)

    def test_what_has_no_official_name(self, golden, model):
        with_more = nn.ModuleDict(dict(model.named_children()))
        with_more['extra'] = nn.Linear(2, 2, bias=False)
        with pytest.raises(ValueError, match='1 of .*\n  missing: extra.weight$'):
            check_official_state_dict(golden.state, with_more)
