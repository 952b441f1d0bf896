import cv2
import numpy as np
import pytest
import torch

from mdeq_mm import apis
from mdeq_mm.benchmark import pan
from mdeq_mm.inference import Predictor

SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'
RESNET = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'


@pytest.fixture(scope='session')
def texture():
    """Makes a smooth image, BGR, of a seed and a size."""

    def make(seed, size):
        coarse = np.random.default_rng(seed).integers(60, 190, (5, 12, 3), np.uint8)
        return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)

    return make


@pytest.fixture(scope='session')
def panned(texture):
    """Two pans, 30 frames each, so that there is a cut at frame 30."""
    images = texture(0, (64, 200)), 255 - texture(1, (64, 200))
    return [frame for image in images for frame in pan(image, 30, 0.5, (64, 64))]


@pytest.fixture
def make_predictor(root, tmp_path, calm):
    """Makes the predictor of a config, with a model that is a contraction."""

    def make(config=SEGMENTOR, meta=None, change=lambda model: None, **options):
        cfg = apis.load_config(root / config, options)
        model = calm(apis.build_model(cfg))
        change(model)
        path = tmp_path / 'model.pth'
        torch.save(dict(state_dict=model.state_dict(), meta=meta or {}), path)
        return Predictor(cfg, path, device='cpu')

    return make
