from threading import Thread

import cv2
import numpy as np
import pytest
import torch

from mdeq_mm import apis
from mdeq_mm.inference import Predictor

from .conftest import CLASSIFIER, RESNET


class TestSegmentor:
    def test_prediction_is_that_of_the_pipeline(self, make_predictor, texture):
        predictor = make_predictor()
        image = texture(0, (48, 72))
        prediction = predictor(image)
        data = torch.from_numpy(image.copy()).permute(2, 0, 1)
        (expected,) = predictor.model.test_step(
            dict(inputs=[data], data_samples=[prediction.sample.clone()])
        )
        labels = prediction.labels
        assert labels.shape == (48, 72)
        assert np.array_equal(labels, expected.pred_sem_seg.data[0].numpy())
        (solve,) = prediction.solves
        assert solve.converged
        assert solve.from_zero
        assert solve.residual <= 1e-3
        assert 1 < solve.n_evals <= 20

    def test_evaluations_are_those_of_the_cell(self, make_predictor, texture):
        predictor, calls = make_predictor(), []
        cell = predictor.model.backbone.equilibrium.cell
        with cell.register_forward_hook(lambda *_: calls.append(1)):
            prediction = predictor(texture(0, (64, 64)))
        assert prediction.solves[0].n_evals == len(calls)

    def test_nothing_is_left(self, make_predictor, texture):
        predictor = make_predictor()
        layer = predictor.model.backbone.equilibrium
        first = predictor(texture(0, (64, 64)))
        assert not layer._pass_hooks
        with pytest.raises(Exception, match='.'):
            predictor('no image')
        assert not layer._pass_hooks
        predictor(texture(1, (64, 64)))
        assert predictor(texture(0, (64, 64))).solves == first.solves

    def test_solves_of_other_threads_are_not_taken(self, make_predictor, texture):
        """Another thread predicts with the same model while this one does."""
        predictor, others = make_predictor(), []
        alone = predictor(texture(0, (48, 72))), predictor(texture(1, (64, 64)))

        def predict_elsewhere(*_):
            handle.remove()
            thread = Thread(
                target=lambda: others.append(predictor(texture(1, (64, 64))))
            )
            thread.start()
            thread.join()

        handle = predictor.model.backbone.register_forward_pre_hook(predict_elsewhere)
        own = predictor(texture(0, (48, 72)))
        assert (own.solves, others[0].solves) == (alone[0].solves, alone[1].solves)

    def test_resizing_pipeline(self, make_predictor, texture):
        """CamVid's resizes; the labels have the size of the image."""
        predictor = make_predictor(RESNET)
        prediction = predictor(texture(0, (60, 100)))
        assert prediction.labels.shape == (60, 100)
        assert prediction.solves == ()

    def test_shares(self, make_predictor, texture):
        predictor = make_predictor()
        prediction = predictor(texture(0, (64, 64)))
        labels = np.zeros((64, 64), np.int64)
        labels[32:48], labels[48:] = 1, 4
        prediction.sample.pred_sem_seg.data = torch.from_numpy(labels)[None]
        assert predictor.shares(prediction, 2) == [('background', 0.5), ('0', 0.25)]
        assert len(predictor.shares(prediction)) == 3

    def test_picture(self, make_predictor, texture):
        predictor, image = make_predictor(), texture(0, (64, 64))
        prediction = predictor(image)
        prediction.sample.pred_sem_seg.data = torch.ones(1, 64, 64, dtype=torch.int64)
        expected = 0.4 * image[..., ::-1] + 0.6 * np.array(predictor.palette[1])
        assert np.abs(predictor.draw(image, prediction) - expected).max() <= 0.5

    def test_classes_of_the_checkpoint_come_first(self, make_predictor):
        meta = dict(dataset_meta=dict(classes=tuple('abcdefghijk')))
        predictor = make_predictor(meta=meta)
        assert predictor.classes == tuple('abcdefghijk')
        assert len(predictor.palette) == 11

    def test_reading(self, make_predictor, tmp_path, texture):
        read = make_predictor().read
        cv2.imwrite(str(tmp_path / 'image.png'), texture(0, (64, 64)))
        assert np.array_equal(read(tmp_path / 'image.png'), texture(0, (64, 64)))
        with pytest.raises(FileNotFoundError):
            read(tmp_path / 'no.png')


class TestClassifier:
    @pytest.fixture
    def predictor(self, make_predictor):
        return make_predictor(CLASSIFIER)

    def test_scores(self, predictor, texture):
        prediction = predictor(texture(0, (8, 8)))
        shares = predictor.shares(prediction, 10)
        assert sum(share for _, share in shares) == pytest.approx(1)
        assert [share for _, share in shares] == sorted(
            (share for _, share in shares), reverse=True
        )
        # The folder of digits is not read, so nobody knows the names.
        assert shares[0][0] == str(prediction.sample.pred_label.item())
        assert len(predictor.shares(prediction)) == 5
        assert len(prediction.solves) == 1

    def test_names(self, make_predictor, texture):
        names = tuple('abcdefghij')
        predictor = make_predictor(
            CLASSIFIER, meta=dict(dataset_meta=dict(classes=names))
        )
        prediction = predictor(texture(0, (8, 8)))
        ((name, _),) = predictor.shares(prediction, 1)
        assert name == names[prediction.sample.pred_label.item()]

    def test_picture(self, predictor, texture):
        image = texture(0, (8, 12))
        picture = predictor.draw(image, predictor(image))
        assert picture.shape == (256, 384, 3)
        plain = cv2.resize(image[..., ::-1].copy(), (384, 256)).astype(float)
        changed = np.abs(picture - plain).max(axis=2) > 60
        # The text is in the upper left corner.
        assert changed[:90].mean() > 0.05
        assert changed[160:].mean() < 0.01


class TestBadConfigs:
    @pytest.fixture
    def cfg(self, root):
        return apis.load_config(root / RESNET)

    def test_other_toolbox(self, cfg):
        cfg.default_scope = 'mmengine'
        with pytest.raises(ValueError, match=r"default_scope must be one of \('mmseg'"):
            Predictor(cfg, 'model.pth')

    def test_joined_data_sets(self, cfg):
        dataset = cfg.test_dataloader.dataset
        cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset])
        with pytest.raises(ValueError, match='must have a pipeline, ConcatDataset has'):
            Predictor(cfg, 'model.pth')

    def test_no_test_dataloader(self, cfg):
        cfg.test_dataloader = None
        with pytest.raises(ValueError, match='must have a test_dataloader'):
            Predictor(cfg, 'model.pth')

    def test_missing_checkpoint(self, cfg):
        with pytest.raises(FileNotFoundError):
            Predictor(cfg, 'no.pth')
