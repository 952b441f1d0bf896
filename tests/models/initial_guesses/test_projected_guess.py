import copy

import pytest
import torch

from mdeq_mm.deq import StateLayout
from mdeq_mm.models import MDEQ, ProjectedGuess

ARCH = dict(channels=(8, 16), num_groups=4, expansion=2)


def model(**kwargs):
    guess = dict(type='ProjectedGuess', **kwargs)
    return MDEQ(arch=ARCH, initial_guess=guess)


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
        solves = []
        backbone.equilibrium.register_solve_hook(lambda *args: solves.append(args[1]))
        image = torch.rand(2, 3, *size)
        with torch.no_grad():
            first = copy.deepcopy(backbone)
            backbone(image)
            assert solves[0].guess.abs().sum() > 0
            for parameter in first.equilibrium.initial_guess.parameters():
                parameter.zero_()
            first(image)
        assert (solves[1].guess == 0).all()

    def test_initialisation_is_near_zero(self):
        backbone = model()
        backbone.init_weights()
        for conv in backbone.equilibrium.initial_guess.convs:
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.5)

    @pytest.mark.parametrize('shallow', [False, True])
    def test_nobody_trains_it(self, shallow):
        backbone = model()
        backbone.equilibrium.shallow = shallow
        image = torch.rand(1, 3, 32, 32)
        with pytest.raises(RuntimeError, match='add .*InitialGuessLossHook'):
            backbone(image)
        with torch.no_grad():
            backbone(image)
        backbone.equilibrium.initial_guess.requires_grad_(False)
        backbone(image)
        backbone.requires_grad_(True).eval()(image)

    @pytest.mark.parametrize('gradient', ['ImplicitGradient', 'UnrolledGradient'])
    def test_gradient_reaches_the_convolutions_alone(self, gradient):
        guess = dict(type='ProjectedGuess')
        backbone = MDEQ(arch=ARCH, initial_guess=guess, gradient=dict(type=gradient))
        backbone.equilibrium.initial_guess.supervised = True
        solves = []
        backbone.equilibrium.register_solve_hook(lambda *args: solves.append(args[1]))
        outputs = backbone(torch.rand(2, 3, 32, 32))
        convs = {'equilibrium.initial_guess.convs'}
        for loss, reached in (
            (sum(output.sum() for output in outputs), False),
            (solves[0].guess.sum(), True),
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

    @pytest.mark.parametrize('kernel_size', [0, 2, 1.0])
    def test_wrong_kernel_size(self, kernel_size):
        with pytest.raises(ValueError, match=f'kernel_size must .* got {kernel_size}'):
            model(kernel_size=kernel_size)
