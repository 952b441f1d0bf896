import cv2
import numpy as np
import pytest

from mdeq_mm import apis
from mdeq_mm.image_pipeline import ImagePipeline

CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'


@pytest.fixture
def cfg(root):
    return apis.load_config(root / SEGMENTOR)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)


@pytest.fixture
def path(image, tmp_path):
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize('config', [SEGMENTOR, CLASSIFIER])
def test_batch_is_that_of_the_data_set(root, config, path, image):
    cfg = apis.load_config(root / config)
    dataset = apis.build_test_dataset(cfg)
    steps = [
        step
        for step in dataset.pipeline.transforms
        if type(step).__name__ != 'LoadAnnotations'
    ]
    expected = dict(img_path=str(path))
    for step in steps:
        expected = step(expected)
    prepare = ImagePipeline(cfg)
    for form in (path, str(path), image):
        batch = prepare(form)
        (inputs,), (sample,) = batch['inputs'], batch['data_samples']
        assert (inputs == expected['inputs']).all()
        for key, value in expected['data_samples'].metainfo.items():
            if key != 'img_path':
                assert sample.metainfo[key] == value
        assert sample.img_path == (None if form is image else str(path))


def test_reading(cfg, path, image):
    assert np.array_equal(ImagePipeline(cfg).read(path), image)
    assert ImagePipeline(cfg).metainfo['classes'][0] == 'sky'


def test_reading_as_the_pipeline_does(cfg, path, image):
    cfg.test_dataloader.dataset.pipeline[0].update(color_type='grayscale')
    assert ImagePipeline(cfg).read(path).shape == (60, 100)


def test_no_image(cfg, path):
    path.write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'image\.png cannot be read as an image'):
        ImagePipeline(cfg).read(path)
    with pytest.raises(FileNotFoundError):
        ImagePipeline(cfg).read(path.with_name('no.png'))


def test_images_in_memory(root, path, image):
    """Nobody knows in which order the model wants the channels of a file."""
    config = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'
    pipeline = ImagePipeline(apis.load_config(root / config))
    with pytest.raises(ValueError, match=r"must load images.* got \['PackInputs'\]"):
        pipeline.read(path)
    assert pipeline(image)['inputs'][0].shape == (3, 60, 100)


def test_no_pipeline(cfg):
    cfg.test_dataloader = None
    with pytest.raises(ValueError, match='must have a test_dataloader'):
        ImagePipeline(cfg)
