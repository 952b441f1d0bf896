"""Threads that use one model at the same time see nothing of each other."""

import copy
from threading import Barrier, Thread

import pytest
import torch

from mdeq_mm.deq import BroydenSolver, ImplicitGradient, PicardSolver, Unrolled
from mdeq_mm.models import MDEQ, DEQViT

pytestmark = pytest.mark.usefixtures('eager_threads')

BACKBONES = {
    MDEQ: dict(
        arch=dict(channels=(8, 16), expansion=1, num_groups=4, downsample_times=0)
    ),
    DEQViT: dict(
        arch=dict(embed_dims=8, num_heads=2, feedforward_channels=16),
        img_size=8,
        patch_size=2,
    ),
}
N_THREADS, N_PREDICTIONS = 8, 50


def make_model(kind, **kwargs):
    solver = BroydenSolver(max_evals=2)
    return kind(
        **BACKBONES[kind],
        forward_solver=solver,
        gradient=ImplicitGradient(solver),
        num_layers=2,
        **kwargs,
    )


@pytest.fixture(params=BACKBONES, ids=lambda kind: kind.__name__)
def model(request):
    return make_model(request.param, dropout=0.2)


def together(*functions):
    """Runs functions in threads that begin at the same time; returns their results."""
    barrier, results, errors = Barrier(len(functions)), {}, []

    def run(number, function):
        try:
            barrier.wait()
            results[number] = function()
        except BaseException as error:  # noqa: BLE001  it is raised below
            errors.append(error)

    threads = [Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(functions))]


def predict(model, image, autocast=False):
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        return model(image)


def same(actual, expected):
    return all(torch.equal(a, e) for a, e in zip(actual, expected))


def gradients(model, image):
    torch.manual_seed(0)
    model.zero_grad()
    sum(z.square().sum() for z in model(image)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_like_fresh(model, dropout=0.2):
    """A model that threads have used is one that nobody has used."""
    fresh, image = make_model(type(model), dropout=dropout), torch.rand(1, 3, 8, 8)
    source = make_model(type(model))
    for used in (model, fresh):
        used.load_state_dict(source.state_dict())
    assert same(predict(model.eval(), image), predict(fresh.eval(), image))
    actual, expected = (gradients(m.train(), image) for m in (model, fresh))
    for name, gradient in expected.items():
        assert gradient is not None, name
        assert torch.equal(actual[name], gradient), name


class TestThreads:
    def test_predictions(self, model):
        """Sizes mixed, one thread under autocast."""
        model.eval()
        images = [torch.rand(1 + n % 2, 3, 8, 4 + 2 * n) for n in range(N_THREADS)]
        expected = [predict(model, x, n == 3) for n, x in enumerate(images)]

        def serve(number):
            for _ in range(N_PREDICTIONS):
                actual = predict(model, images[number], number == 3)
                if not same(actual, expected[number]):
                    return False
            return True

        tasks = [lambda n=n: serve(n) for n in range(N_THREADS)]
        assert together(*tasks) == [True] * N_THREADS
        assert_like_fresh(model)

    def test_training_beside_prediction(self):
        """Both as if each were alone."""
        model = make_model(MDEQ).eval()
        model.equilibrium.train()  # the stem's batch norm would learn from images
        image, picture = torch.rand(2, 3, 8, 8), torch.rand(1, 3, 6, 10)
        expected, outputs = gradients(model, image), predict(model, picture)

        def train():
            return [gradients(model, image) for _ in range(8)]

        def evaluate():
            return [predict(model, picture) for _ in range(30)]

        trained, evaluated = together(train, evaluate)
        for actual in trained:
            assert all(torch.equal(actual[name], g) for name, g in expected.items())
        assert all(same(actual, outputs) for actual in evaluated)
        assert_like_fresh(model, dropout=0.0)

    def test_training_in_two_threads(self, model):
        """Each with dropout masks of its own, backward in its own thread."""
        images = [torch.rand(2, 3, 8, 8), torch.rand(1, 3, 6, 10)]

        def train(number):
            for _ in range(8):
                features = model(images[number])
                loss = sum(z.square().sum() for z in features)
                grads = torch.autograd.grad(loss, list(model.parameters()))
                assert all(gradient.isfinite().all() for gradient in grads)

        together(lambda: train(0), lambda: train(1))
        assert_like_fresh(model)

    def test_copies_made_meanwhile(self, model):
        model.eval()
        image = torch.rand(1, 3, 8, 8)
        expected = predict(model, image)

        def serve():
            for _ in range(30):
                predict(model, image)

        def duplicate():
            return [copy.deepcopy(model) for _ in range(5)]

        _, copies = together(serve, duplicate)
        for twin in copies:
            assert same(predict(twin, image), expected)
            assert_like_fresh(twin)


class TestOverrides:
    def test_other_threads_do_not_see_them(self, model):
        layer, image = model.equilibrium, torch.rand(1, 3, 8, 8)
        model.eval()
        expected = predict(model, image)
        barrier = Barrier(2)

        def override():
            with layer.using(mode=Unrolled(3)):
                barrier.wait()
                outputs = predict(model, image)
                barrier.wait()
            return layer.mode, outputs

        def plain():
            barrier.wait()
            mode, outputs = layer.mode, predict(model, image)
            barrier.wait()
            return mode, outputs

        (first, overridden), (second, untouched) = together(override, plain)
        assert first is second is layer.configured
        assert same(untouched, expected)
        assert not same(overridden, expected)

    def test_each_thread_its_own(self, model):
        model.eval()
        image = torch.rand(1, 3, 8, 8)

        def predict_with(max_evals):
            solver = PicardSolver(max_evals, 0.0)
            for _ in range(20):
                with model.equilibrium.using(solver=solver):
                    outputs = predict(model, image)
            return outputs

        budgets = range(1, 5)
        expected = [predict_with(n) for n in budgets]
        actual = together(*(lambda n=n: predict_with(n) for n in budgets))
        assert all(same(a, e) for a, e in zip(actual, expected))

    def test_context_that_another_thread_ends(self, model):
        """As the garbage collector may end a generator."""
        layer = model.equilibrium
        context = layer.using(mode=layer.unrolled)
        context.__enter__()
        together(lambda: context.__exit__(None, None, None))
        assert layer.mode is layer.configured

    def test_setting_the_mode_is_seen_by_all(self, model):
        layer = model.equilibrium
        layer.mode = layer.unrolled
        assert together(lambda: layer.mode) == [layer.unrolled]
