import pytest
import torch

from mdeq_mm.deq import LearnedGuess, StateLayout
from mdeq_mm.models import MDEQ, ProjectedGuess

ARCH = dict(channels=(8, 16), num_groups=4, expansion=2)


def model(gradient=dict(type='PhantomGradient'), **kwargs):
    guess = dict(type='ProjectedGuess', **kwargs)
    return MDEQ(arch=ARCH, initial_guess=guess, gradient=gradient)


def forward_pass_of(backbone, image):
    """Features, and the record of the pass that made them."""
    passes = []

    def note(layer, forward_pass):
        passes.append(forward_pass)

    with backbone.equilibrium.register_pass_hook(note):
        features = backbone(image)
    (forward_pass,) = passes
    return features, forward_pass


class TestProjectedGuess:
    @pytest.mark.parametrize('kernel_size', [1, 3])
    def test_guess(self, kernel_size):
        guess = ProjectedGuess((2, 3), kernel_size)
        injections = (torch.randn(4, 2, 6, 10), torch.zeros(4, 3, 3, 5))
        layout = StateLayout.of(injections)
        state = guess.eval()(injections, layout, torch.float32)
        fine, coarse = layout.unpack(state)
        torch.testing.assert_close(fine, guess.convs[0](injections[0]))
        halved = injections[0].unflatten(2, (3, 2)).unflatten(4, (5, 2)).mean((3, 5))
        torch.testing.assert_close(coarse, guess.convs[1](halved))

    @pytest.mark.parametrize('size', [(33, 47), (64, 64)])
    def test_in_a_backbone(self, size):
        backbone = model().eval()
        image = torch.rand(2, 3, *size)
        with torch.no_grad():
            assert forward_pass_of(backbone, image)[1].guess.abs().sum() > 0
            for parameter in backbone.equilibrium.initial_guess.parameters():
                parameter.zero_()
            assert (forward_pass_of(backbone, image)[1].guess == 0).all()

    def test_initialisation_is_near_zero(self):
        backbone = model()
        backbone.init_weights()
        for conv in backbone.equilibrium.initial_guess.convs:
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.5)

    @pytest.mark.parametrize('unrolled', [False, True])
    def test_nobody_trains_it(self, unrolled):
        backbone = model()
        layer = backbone.equilibrium
        if unrolled:
            layer.mode = layer.unrolled
        image = torch.rand(1, 3, 32, 32)
        with pytest.raises(RuntimeError, match='add .*InitialGuessLossHook'):
            backbone(image)
        with layer.initial_guess.supervision():
            backbone(image)
        with pytest.raises(RuntimeError, match='nothing trains .* ProjectedGuess'):
            backbone(image)
        with torch.no_grad():
            backbone(image)
        layer.initial_guess.requires_grad_(False)
        backbone(image)
        backbone.requires_grad_(True).eval()(image)

    def test_is_a_learned_guess(self):
        assert isinstance(model().equilibrium.initial_guess, LearnedGuess)

    @pytest.mark.parametrize('gradient', ['ImplicitGradient', 'PhantomGradient', None])
    def test_gradient_reaches_the_convolutions_alone(self, gradient):
        """None is the unrolled mode, which needs no gradient of its own."""
        if gradient == 'ImplicitGradient':
            solver = dict(type='PicardSolver', max_evals=3)
            backbone = model(dict(type=gradient, solver=solver))
        else:
            backbone = model()
        layer = backbone.equilibrium
        if gradient is None:
            layer.mode = layer.unrolled
        with layer.initial_guess.supervision():
            outputs, forward_pass = forward_pass_of(backbone, torch.rand(2, 3, 32, 32))
        convs = {'equilibrium.initial_guess.convs'}
        for loss, reached in (
            (sum(output.sum() for output in outputs), False),
            (forward_pass.guess.sum(), True),
        ):
            backbone.zero_grad()
            loss.backward()
            for name, parameter in backbone.named_parameters():
                is_guess = name.rsplit('.', 2)[0] in convs
                assert (parameter.grad is not None) == (is_guess == reached), name

    def test_autocast(self):
        backbone = model().eval()
        with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
            assert backbone(torch.rand(1, 3, 32, 32))[0].dtype == torch.float32

    @pytest.mark.parametrize('kernel_size', [0, 2, 1.0, True])
    def test_wrong_kernel_size(self, kernel_size):
        with pytest.raises(ValueError, match=f'kernel_size must .* got {kernel_size}'):
            model(kernel_size=kernel_size)
