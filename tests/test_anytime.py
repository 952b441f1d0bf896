import threading
from dataclasses import replace

import mmcv
import mmpretrain
import mmseg.apis
import pytest
import torch
from torch import nn

from mdeq_mm import apis
from mdeq_mm.anytime import anytime, predict_image, prediction_budget
from mdeq_mm.benchmark import count_work
from mdeq_mm.deq import BroydenSolver, Equilibrium, PreviousGuess, Unrolled
from mdeq_mm.models import MDEQ

CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
ARCH = dict(channels=(8, 16), num_groups=4, expansion=1, downsample_times=0)


@pytest.fixture
def model(calm):
    """Takes 8 evaluations for the images below, with a tolerance that all reach."""
    solver = BroydenSolver(max_evals=20, tol=1e-3)
    return calm(MDEQ(arch=ARCH, forward_solver=solver)).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)


@torch.no_grad()
def predict(model, images):
    return model(images)


def evaluations(model, images):
    with count_work(model.equilibrium) as work:
        predict(model, images)
    return work.evaluations


class TestPredictionBudget:
    def test_bounds_the_evaluations(self, model, images):
        whole = evaluations(model, images)
        for max_evals in (1, 3):
            with prediction_budget(model, max_evals=max_evals):
                assert evaluations(model, images) == max_evals
        assert evaluations(model, images) == whole > 3

    def test_tolerance(self, model, images):
        whole = evaluations(model, images)
        with prediction_budget(model, tol=0.2):
            assert evaluations(model, images) < whole
        with prediction_budget(model, tol=0.0, max_evals=12):
            assert evaluations(model, images) == 12

    def test_nothing_else_changes(self, model):
        layer = model.equilibrium
        mode = layer.mode
        with prediction_budget(model, max_evals=3, tol=0.5):
            solver = replace(mode.solver, max_evals=3, tol=0.5)
            assert layer.mode == Equilibrium(solver, mode.gradient)
        assert layer.mode == mode

    def test_ends_with_an_exception(self, model):
        mode = model.equilibrium.mode
        with pytest.raises(KeyError), prediction_budget(model, max_evals=3):
            raise KeyError
        assert model.equilibrium.mode == mode

    def test_holds_in_its_thread(self, model):
        seen = []
        with prediction_budget(model, max_evals=3):
            thread = threading.Thread(
                target=lambda: seen.append(model.equilibrium.mode.solver.max_evals)
            )
            thread.start()
            thread.join()
        assert seen == [20]

    def test_several_layers(self, images):
        solvers = [BroydenSolver(max_evals=n, tol=0.0) for n in (7, 8)]
        models = nn.ModuleList(MDEQ(arch=ARCH, forward_solver=s) for s in solvers)
        with prediction_budget(models.eval(), max_evals=2):
            assert [evaluations(model, images) for model in models] == [2, 2]
        with prediction_budget(models, tol=1e-2):
            found = [model.equilibrium.mode.solver for model in models]
        assert found == [replace(solver, tol=1e-2) for solver in solvers]

    def test_unrolled_model(self, model):
        model.equilibrium.mode = Unrolled(5)
        message = r'must be at the equilibrium, its mode is Unrolled\(num_layers=5\)'
        with pytest.raises(ValueError, match=message):
            prediction_budget(model, max_evals=3).__enter__()
        model.equilibrium.mode = model.equilibrium.configured  # as the message says
        with prediction_budget(model, max_evals=3):
            assert model.equilibrium.mode.solver.max_evals == 3

    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            (dict(max_evals=0), 'max_evals must be an integer of at least 1, got 0'),
            (dict(tol=-1.0), r'tol must be a number of at least 0, got -1.0'),
        ],
    )
    def test_wrong_arguments(self, model, settings, message):
        with pytest.raises(ValueError, match=message):
            prediction_budget(model, **settings).__enter__()

    def test_model_without_layer(self):
        with pytest.raises(ValueError, match='is needed, Linear has none'):
            prediction_budget(nn.Linear(1, 1), max_evals=3).__enter__()


@pytest.mark.parametrize('path', [CLASSIFIER, SEGMENTOR])
def test_budget_among_the_options(root, path):
    """What `tools/test.py --cfg-options` does, for a model that solves."""
    option = {'model.backbone.forward_solver.max_evals': 6}
    configured, mode = (
        apis.single_layer(apis.build_model(apis.load_config(root / path, options))).mode
        for options in (None, option)
    )
    assert mode.solver == replace(configured.solver, max_evals=6)
    assert mode.gradient.solver == configured.gradient.solver


class TestAnytime:
    def test_solve_that_begins_in_bfloat16(self, model, images):
        model.equilibrium.evaluation_dtype = 'bfloat16'
        *_, last = anytime(model, images, predict=predict)
        assert last.is_final
        for found, expected in zip(last.prediction, predict(model, images)):
            assert torch.equal(found, expected)

    def test_last_one_is_what_the_model_predicts(self, model, images):
        expected = predict(model, images)
        *early, last = anytime(model, images, predict=predict)
        assert last.is_final
        assert not any(one.is_final for one in early)
        for found, wanted in zip(last.prediction, expected):
            assert torch.equal(found, wanted)

    def test_costs_no_more_than_one_prediction(self, model, images):
        whole = evaluations(model, images)
        with count_work(model.equilibrium) as work:
            counts = [
                (early.n_evals, work.evaluations)
                for early in anytime(model, images, predict=predict)
            ]
        assert counts == [(n, n) for n in range(1, whole + 1)]

    def test_whoever_stops_early_pays_less(self, model, images):
        with count_work(model.equilibrium) as work:
            predictions = anytime(model, images, at=[3], predict=predict)
            assert work.evaluations == 0
            early = next(predictions)
            predictions.close()
        assert work.evaluations == early.n_evals == 3
        assert not early.is_final

    def test_early_one_is_that_of_a_budget(self, model, images):
        early = next(anytime(model, images, at=[3], predict=predict))
        residuals = []
        with (
            prediction_budget(model, max_evals=3),
            model.equilibrium.register_pass_hook(
                lambda layer, p: residuals.append(p.solution.residual.max().item())
            ),
        ):
            expected = predict(model, images)
        assert [early.residual] == residuals
        for found, wanted in zip(early.prediction, expected):
            torch.testing.assert_close(found, wanted)

    def test_where_to_pause(self, model, images):
        whole = evaluations(model, images)
        for at in ([2, 4], [4, 2, 100], ()):
            found = [early.n_evals for early in anytime(model, images, at, predict)]
            assert found == sorted(n for n in {*at, whole} if n <= whole)

    def test_residual_falls(self, model, images):
        residuals = [e.residual for e in anytime(model, images, predict=predict)]
        assert residuals == sorted(residuals, reverse=True)
        assert residuals[-1] <= 1e-3 < residuals[0]

    def test_nothing_is_overridden_between(self, model, images):
        expected = predict(model, images)
        for _ in anytime(model, images, at=[2, 4], predict=predict):
            assert model.equilibrium.mode is model.equilibrium.configured
            for found, wanted in zip(predict(model, images), expected):
                assert torch.equal(found, wanted)

    def test_two_take_turns(self, model, images):
        def last_of(prediction):
            return [feature.clone() for feature in prediction]

        expected = [predict(model, one) for one in (images, 3 * images)]
        first = anytime(model, images, predict=predict)
        second = anytime(model, 3 * images, predict=predict)
        last = [None, None]
        for one, other in zip(first, second):
            last = [last_of(one.prediction), last_of(other.prediction)]
        for place, rest in enumerate((first, second)):
            for early in rest:
                last[place] = last_of(early.prediction)
        for found, wanted in zip(last, expected):
            for one, other in zip(found, wanted):
                assert torch.equal(one, other)

    def test_several_passes(self, model, images):
        """As with sliding windows: each pass has a solve of its own."""

        def predict_windows(model, images):
            return [predict(model, image[None]) for image in images]

        whole = [evaluations(model, image[None]) for image in images]
        assert whole[0] != whole[1]
        expected = predict_windows(model, images)
        with count_work(model.equilibrium) as work:
            *_, last = anytime(model, images, predict=predict_windows)
        assert work.evaluations == sum(whole)
        assert last.n_evals == max(whole)
        for found, wanted in zip(last.prediction, expected):
            for one, other in zip(found, wanted):
                assert torch.equal(one, other)

    def test_guess_of_the_frame_before(self, model, images):
        model.equilibrium.initial_guess = PreviousGuess().eval()
        predict(model, images)
        assert evaluations(model, images) == 1
        expected = [feature.clone() for feature in predict(model, images)]
        with count_work(model.equilibrium) as work:
            *_, last = anytime(model, images, predict=predict)
        assert work.evaluations == 1
        for found, wanted in zip(last.prediction, expected):
            assert torch.equal(found, wanted)

    def test_hooks_see_the_passes(self, model, images):
        seen = []

        def observe(layer, forward_pass):
            seen.append(int(forward_pass.solution.n_evals.max()))

        with model.equilibrium.register_pass_hook(observe):
            list(anytime(model, images, at=[2, 4], predict=predict))
        assert seen[:2] == [2, 4]
        assert len(seen) == 3

    @pytest.mark.parametrize('at', [[0], [2, 1.5], [True]])
    def test_wrong_pauses(self, model, images, at):
        with pytest.raises(ValueError, match='at must be an integer of at least 1'):
            anytime(model, images, at, predict)

    def test_wrong_model(self, model, images):
        two = nn.ModuleList([model, MDEQ(arch=ARCH)])
        with pytest.raises(ValueError, match='at most one equilibrium layer'):
            anytime(two, images)
        with pytest.raises(ValueError, match='is needed, Linear has none'):
            anytime(nn.Linear(1, 1), images)
        with pytest.raises(ValueError, match='must be in evaluation mode'):
            anytime(model.train(), images)
        model.eval().equilibrium.mode = Unrolled(2)
        with pytest.raises(ValueError, match='must be at the equilibrium'):
            anytime(model, images)

    def test_predict_that_does_not_run_the_model(self, model, images):
        predictions = anytime(model, images, predict=lambda model, images: images)
        with pytest.raises(ValueError, match='predict must run the model'):
            next(predictions)

    def test_error_of_predict_ends_the_override(self, model, images):
        def fail(model, images):
            predict(model, images)
            raise KeyError

        with pytest.raises(KeyError):
            next(anytime(model, images, predict=fail))
        assert model.equilibrium.mode is model.equilibrium.configured


@pytest.fixture
def image(tmp_path):
    mmcv.imwrite((torch.rand(64, 64, 3) * 255).byte().numpy(), str(tmp_path / 'a.png'))
    return str(tmp_path / 'a.png')


class TestToolboxes:
    @pytest.fixture
    def segmentor(self, root, calm):
        model = calm(mmseg.apis.init_model(str(root / SEGMENTOR), device='cpu'))
        return model.eval()

    @pytest.fixture
    def classifier(self, root, calm):
        cfg = apis.load_config(root / CLASSIFIER)
        return calm(apis.build_model(cfg)), cfg

    def test_segmentor(self, segmentor, image):
        expected = mmseg.apis.inference_model(segmentor, image).pred_sem_seg.data
        first, *_, last = anytime(segmentor, image, at=[2, 4])
        assert (first.n_evals, last.is_final) == (2, True)
        assert torch.equal(last.prediction.pred_sem_seg.data, expected)
        predict = mmseg.apis.inference_model
        *_, last = anytime(segmentor, image, at=[2], predict=predict)
        assert torch.equal(last.prediction.pred_sem_seg.data, expected)

    def test_classifier(self, classifier, image):
        model, cfg = classifier
        expected = predict_image(model, image, cfg).pred_score
        model.cfg = cfg
        scores = [e.prediction.pred_score for e in anytime(model, image, at=[1, 3])]
        assert len(scores) == 3
        assert torch.equal(scores[-1], expected)
        assert not torch.equal(scores[0], expected)

    def test_stock_classifier(self, root, calm, image):
        model = mmpretrain.get_model(str(root / CLASSIFIER), device='cpu')
        calm(model).eval()
        (expected,) = mmpretrain.ImageClassificationInferencer(model)(image)
        *_, last = anytime(model, image, at=[2])
        assert (last.prediction.pred_score.numpy() == expected['pred_scores']).all()

    def test_image_that_is_read_already(self, segmentor, classifier, image):
        model, cfg = classifier
        for one, its_cfg, name in (
            (segmentor, None, 'seg_logits'),
            (model, cfg, 'pred_score'),
        ):
            read, given = (
                getattr(predict_image(one, form, its_cfg), name)
                for form in (image, mmcv.imread(image))
            )
            # Maps are wrapped, scores are not.
            assert torch.equal(*(getattr(x, 'data', x) for x in (read, given)))

    def test_no_config(self, classifier, image):
        with pytest.raises(ValueError, match='cfg must be the config of the model'):
            predict_image(classifier[0], image)

    def test_no_pipeline(self, classifier, image):
        model, cfg = classifier
        cfg.test_dataloader = None
        with pytest.raises(ValueError, match='must have a test_dataloader'):
            predict_image(model, image, cfg)
