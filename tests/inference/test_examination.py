import numpy as np
import pytest
import torch

from mdeq_mm.deq import AndersonSolver, BroydenSolver, PicardSolver, Unrolled
from mdeq_mm.inference import examine_image, solver_named

from .conftest import CLASSIFIER, RESNET


class TestExamineImage:
    def test_segmentor(self, make_predictor, texture):
        predictor = make_predictor()
        image = texture(0, (50, 70))
        case = examine_image(predictor, image)
        prediction = predictor(image)
        np.testing.assert_array_equal(
            case.prediction, predictor.draw(image, prediction)
        )
        assert case.shares == predictor.shares(prediction)
        assert case.colours[predictor.classes[1]] == predictor.palette[1]
        examined = case.examination
        assert examined.solution.n_evals == prediction.solves[0].n_evals
        np.testing.assert_array_equal(examined.image, image[..., ::-1])
        assert 0 < examined.radius < 1
        assert examined.adjoint.converged

    def test_classifier(self, make_predictor, texture):
        predictor = make_predictor(CLASSIFIER)
        case = examine_image(predictor, texture(0, (40, 40)), PicardSolver(max_evals=3))
        assert case.colours == {}
        assert len(case.examination.traces) == 3
        assert min(case.prediction.shape[:2]) == 256

    def test_unrolled_checkpoint(self, make_predictor, texture):
        predictor = make_predictor()
        layer = predictor.model.backbone.equilibrium
        expected = examine_image(predictor, texture(0, (32, 32)))
        layer.mode = Unrolled(2)
        case = examine_image(predictor, texture(0, (32, 32)))
        assert torch.equal(
            case.examination.solution.state, expected.examination.solution.state
        )
        assert layer.mode == Unrolled(2)
        assert not layer._pass_hooks

    def test_several_passes(self, make_predictor, texture):
        predictor = make_predictor(
            **{
                'model.test_cfg.mode': 'slide',
                'model.test_cfg.stride': (32, 32),
                'model.test_cfg.crop_size': (32, 32),
            }
        )
        with pytest.raises(ValueError, match=r"test_cfg.mode='whole', got 4"):
            examine_image(predictor, texture(0, (64, 64)))

    def test_another_backbone(self, make_predictor, texture):
        with pytest.raises(ValueError, match='equilibrium layer is needed'):
            examine_image(make_predictor(RESNET), texture(0, (32, 32)))


class TestSolverNamed:
    def test_own(self):
        own = BroydenSolver(memory=7)
        assert solver_named('BroydenSolver', own) is own

    def test_another(self):
        own = BroydenSolver(max_evals=9, tol=0.5, stop_mode='abs')
        expected = AndersonSolver(max_evals=9, tol=0.5, stop_mode='abs')
        assert solver_named('AndersonSolver', own) == expected

    def test_unknown(self):
        with pytest.raises(ValueError, match='NewtonSolver.*allowed are .*Anderson'):
            solver_named('NewtonSolver', BroydenSolver())
