import mmseg.models
import mmseg.structures
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch.nn import functional as F

from mdeq_mm.models import ClassWeightedCrossEntropyLoss

CLASS_WEIGHT = [0.5, 1.0, 3.0]


@pytest.fixture
def pred():
    return torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def label():
    label = torch.randint(0, 3, (2, 4, 5))
    label[0, :2] = 255
    return label


def test_equals_the_weighted_mean_of_pytorch(pred, label):
    loss = ClassWeightedCrossEntropyLoss(CLASS_WEIGHT, loss_weight=2)(pred, label)
    expected = 2 * F.cross_entropy(
        pred, label, torch.tensor(CLASS_WEIGHT).double(), ignore_index=255
    )
    torch.testing.assert_close(loss, expected, check_dtype=False)
    torch.testing.assert_close(
        torch.autograd.grad(loss, pred)[0], torch.autograd.grad(expected, pred)[0]
    )


def test_without_a_valid_pixel_it_is_zero(pred, label):
    loss = ClassWeightedCrossEntropyLoss(CLASS_WEIGHT)(
        pred, torch.full_like(label, 7), ignore_index=7
    )
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(pred.grad, torch.zeros_like(pred))


def test_pixels_of_weight_zero_are_as_ignored_ones(pred, label):
    loss = ClassWeightedCrossEntropyLoss(CLASS_WEIGHT)
    weight = torch.ones(label.shape)
    weight[1, 2:] = 0
    ignored = label.clone()
    ignored[1, 2:] = 255
    torch.testing.assert_close(loss(pred, label, weight=weight), loss(pred, ignored))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_many_pixels_in_half_precision(dtype):
    """Losses and weights are summed in float32."""
    pred = torch.zeros(1, 3, 300, 300, dtype=dtype)
    loss = ClassWeightedCrossEntropyLoss(CLASS_WEIGHT)(
        pred, torch.ones(1, 300, 300, dtype=torch.long)
    )
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-2)


def test_adds_nothing_to_checkpoints():
    assert ClassWeightedCrossEntropyLoss(CLASS_WEIGHT).state_dict() == {}


@pytest.mark.versions
def test_in_a_stock_head(label):
    """The stock loss of mmseg 1.2.2 stops at these labels with an IndexError."""
    init_default_scope('mmseg')
    head = MODELS.build(
        dict(
            type='FCNHead',
            in_channels=4,
            channels=4,
            num_convs=1,
            num_classes=3,
            norm_cfg=dict(type='BN'),
            loss_decode=[
                dict(type=ClassWeightedCrossEntropyLoss.__name__, **settings)
                for settings in (
                    dict(class_weight=CLASS_WEIGHT),
                    dict(class_weight=[1.0] * 3, loss_name='loss_plain'),
                )
            ],
        )
    )
    assert isinstance(head, mmseg.models.decode_heads.FCNHead)
    samples = [
        mmseg.structures.SegDataSample(gt_sem_seg=PixelData(data=one[None]))
        for one in label
    ]
    losses = head.loss([torch.randn(2, 4, 4, 5)], samples, train_cfg={})
    assert {'loss_ce', 'loss_plain'} <= set(losses)
    assert losses['loss_ce'] > 0
    assert losses['loss_ce'] != losses['loss_plain']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(class_weight=[]), r'class_weight must have one .* got \[\]'),
        (dict(class_weight=[1.0, -1.0]), 'class_weight must have one'),
        (dict(class_weight=[float('nan')]), 'class_weight must have one'),
        (dict(class_weight=[1.0], loss_weight=-1), 'loss_weight must .* got -1'),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassWeightedCrossEntropyLoss(**settings)


def test_another_number_of_classes(pred, label):
    with pytest.raises(ValueError, match='class_weight has 2 classes, but pred has 3'):
        ClassWeightedCrossEntropyLoss([1.0, 1.0])(pred, label)


class TestStockArguments:
    """The arguments of mmseg's own loss, which its pixel samplers use."""

    def test_losses_of_all_pixels(self, pred, label):
        loss = ClassWeightedCrossEntropyLoss(CLASS_WEIGHT, loss_weight=2)
        losses = loss(pred, label, reduction_override='none')
        assert losses.shape == label.shape
        expected = 2 * F.cross_entropy(
            pred,
            label,
            torch.tensor(CLASS_WEIGHT).double(),
            ignore_index=255,
            reduction='none',
        )
        torch.testing.assert_close(losses, expected)
        total = loss(pred, label, reduction_override='sum')
        torch.testing.assert_close(total, losses.sum())

    def test_avg_factor(self, pred, label):
        loss = ClassWeightedCrossEntropyLoss(CLASS_WEIGHT)
        total = loss(pred, label, reduction_override='sum')
        torch.testing.assert_close(loss(pred, label, avg_factor=7), total / 7)

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (dict(reduction_override='max'), "reduction_override must .*'max'"),
            (dict(reduction_override='sum', avg_factor=2), 'avg_factor needs a mean'),
        ],
    )
    def test_wrong_argument(self, pred, label, wrong, message):
        with pytest.raises(ValueError, match=message):
            ClassWeightedCrossEntropyLoss(CLASS_WEIGHT)(pred, label, **wrong)

    @pytest.mark.parametrize('thresh', [None, 0.7])
    @pytest.mark.parametrize('stock', [True, False])
    def test_hard_pixels(self, thresh, stock):
        """As with the stock loss, whose weights are all 1 here."""
        name = 'mmseg.CrossEntropyLoss' if stock else 'ClassWeightedCrossEntropyLoss'
        head = mmseg.models.FCNHead(
            in_channels=4,
            channels=4,
            num_convs=0,
            concat_input=False,
            num_classes=3,
            sampler=dict(type='mmseg.OHEMPixelSampler', min_kept=9, thresh=thresh),
            loss_decode=dict(type=name, class_weight=[1.0, 1.0, 1.0]),
        )
        generator = torch.Generator().manual_seed(0)
        logits = torch.rand(1, 3, 8, 8, generator=generator)
        labels = torch.randint(3, (1, 1, 8, 8), generator=generator)
        chosen = head.sampler.sample(logits, labels)
        assert chosen.sum() >= 9
        losses = F.cross_entropy(logits, labels[:, 0], reduction='none')
        hardest = losses.flatten().topk(9).indices
        assert (chosen.flatten()[hardest] == 1).all()
