"""Every neck, head and retriever of MMPretrain behind the backbone, and the page."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmpretrain import FeatureExtractor, ImageRetrievalInferencer
from mmpretrain.registry import BATCH_AUGMENTS

from .classification_heads import (
    ALL,
    BACKBONES,
    BATCH,
    CHANNELS,
    LINEAR,
    MDEQ,
    N_CLASSES,
    NOT_FOR_MAPS,
    ODD_SIZE,
    PAGE,
    POOLING,
    PREPROCESSOR,
    REFUSALS,
    ROWS,
    TABLES,
    WIDTH,
    block,
    build,
    loss_of,
    random_images,
    registered,
    result,
    retriever,
    single_labels,
    types_in,
)

pytestmark = pytest.mark.versions
# The others are slow, all together.
FEW = ('LinearClsHead', 'ArcFaceClsHead', 'HRFuseScales', 'SimSiam')
# Heads of OneDL's MMPretrain alone, for labels that are no classes. They are not tried.
ONLY_IN_ONEDL = {'LinearRegressionHead', 'RegressionHead'}


class TestMatrix:
    def test_every_part_has_a_row(self):
        """A part that MMPretrain adds needs a row here, or a reason why not."""
        names = registered() - ONLY_IN_ONEDL
        run = names & set().union(*(types_in(r.model(MDEQ)) for r in ROWS.values()))
        refused = names & set().union(
            *(types_in(refusal.row.model(MDEQ)) for refusal in REFUSALS.values())
        )
        listed = {name for group in NOT_FOR_MAPS.values() for name in group}
        assert run | refused | listed == names
        assert not listed & (run | refused)
        assert not set(REFUSALS) & run
        assert set(ROWS) <= run

    @pytest.mark.parametrize('backbone', BACKBONES)
    @pytest.mark.parametrize(
        'name',
        [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ROWS],
    )
    def test_row(self, name, backbone):
        """Trains all of the backbone, predicts any size, and each image on its own."""
        assert result(name, backbone) == dict(train='yes', predict='yes', alone='yes')

    @pytest.mark.parametrize('backbone', BACKBONES)
    @pytest.mark.parametrize('name', [n for n, row in ROWS.items() if row.four_maps])
    @pytest.mark.slow
    def test_four_maps_where_one_is_taken(self, name, backbone):
        row = ROWS[name]
        model = build(row, BACKBONES[backbone], ALL)
        with pytest.raises(row.four_maps, match=row.message):
            loss_of(model, row)

    @pytest.mark.parametrize('backbone', BACKBONES)
    @pytest.mark.parametrize('name', REFUSALS)
    def test_refusal(self, name, backbone):
        refusal = REFUSALS[name]
        model = build(refusal.row, BACKBONES[backbone], ALL)
        with pytest.raises(refusal.error, match=refusal.message):
            loss_of(model, refusal.row)

    @pytest.mark.slow
    @pytest.mark.parametrize('name', TABLES)
    def test_table_of_the_page(self, name):
        """`python tests/integration/classification_heads.py` writes it."""
        assert block(name) in PAGE.read_text()


def linear_classifier(**kwargs):
    model = dict(type='ImageClassifier', backbone=MDEQ, neck=POOLING, head=LINEAR)
    model.update(kwargs)
    init_default_scope('mmpretrain')
    model.setdefault('data_preprocessor', dict(PREPROCESSOR))
    built = MODELS.build(model)
    built.init_weights()
    return built


class TestFeatures:
    def test_stages(self):
        model = linear_classifier().eval()
        images = torch.rand(2, 3, *ODD_SIZE)
        with torch.no_grad():
            shapes = {
                stage: [tuple(x.shape) for x in model.extract_feat(images, stage)]
                for stage in ('backbone', 'neck')
            }
            vector = model.extract_feat(images, 'pre_logits')
        sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
        assert shapes['backbone'] == [(2, c, *s) for c, s in zip(CHANNELS, sizes)]
        assert shapes['neck'] == [(2, c) for c in CHANNELS]
        assert vector.shape == (2, WIDTH)

    def test_extractor(self, root):
        """The stock inferencer, with the config of a recipe."""
        config = root / 'configs/classification/mdeq-tiny_1xb64_digits.py'
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            extractor = FeatureExtractor(str(config), pretrained=False, device='cpu')
            images = list(
                np.random.default_rng(0).integers(0, 256, (BATCH, 8, 8, 3), 'uint8')
            )
            together = extractor(images, batch_size=BATCH, stage='backbone')
            alone = extractor(images, batch_size=1, stage='backbone')
        assert len(together) == BATCH
        for first, second in zip(together, alone):
            assert len(first) == 2
            for x, y in zip(first, second):
                torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)

    def test_retrieval(self, tmp_path):
        """The stock inferencer finds each image itself among those of a list."""
        paths = []
        for index, image in enumerate(random_images(40, 56)):
            paths.append(str(tmp_path / f'{index}.png'))
            cv2.imwrite(paths[-1], image.permute(1, 2, 0).numpy())
        dataset = dict(
            type='CustomDataset',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        )
        config = Config(
            dict(
                model=dict(
                    retriever(MDEQ), prototype='', data_preprocessor=dict(PREPROCESSOR)
                ),
                test_dataloader=dict(dataset=dataset),
            )
        )
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            inferencer = ImageRetrievalInferencer(
                config, prototype=paths, pretrained=False, device='cpu'
            )
            found = inferencer(paths, topk=2)
        assert [matches[0]['sample_idx'] for matches in found] == list(range(BATCH))
        for first, second in found:
            assert first['match_score'] == pytest.approx(1, abs=1e-4)
            assert second['match_score'] < first['match_score']

    def test_augmentation_at_test_time(self):
        """The mean of the scores of an image and its mirror image."""
        model = linear_classifier().eval()
        images = random_images(*ODD_SIZE)
        views = [list(images), list(images.flip(-1))]
        merged = MODELS.build(dict(type='AverageClsScoreTTA', module=model)).test_step(
            dict(inputs=views)
        )
        single = [model.test_step(dict(inputs=view)) for view in views]
        for average, first, second in zip(merged, *single):
            expected = (first.pred_score + second.pred_score) / 2
            torch.testing.assert_close(average.pred_score, expected)

    @pytest.mark.parametrize('name', sorted(BATCH_AUGMENTS.module_dict))
    def test_batch_augmentation(self, name):
        """A loss of mixed labels, as ``train_cfg`` asks for."""
        model = linear_classifier(
            train_cfg=dict(augments=dict(type=name, alpha=1.0)),
            data_preprocessor=dict(PREPROCESSOR, num_classes=N_CLASSES),
        ).train()
        data = model.data_preprocessor(
            dict(inputs=list(random_images(48, 64)), data_samples=single_labels()),
            training=True,
        )
        scores = torch.stack([sample.gt_score for sample in data['data_samples']])
        assert ((scores > 0) & (scores < 1)).any()
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        for parameter in model.backbone.parameters():
            assert parameter.grad.isfinite().all()
