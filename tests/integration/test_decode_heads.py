"""Every decode head and neck of MMSegmentation behind an MDEQ, and their page."""

import dataclasses

import mmseg.models.decode_heads
import mmseg.models.necks
import pytest
import torch
from mmengine.registry import MODELS
from mmseg.structures import SegDataSample

from .decode_heads import (
    IS_OLD,
    MISSING_OP,
    OLD_FAULTS,
    PAGE,
    ROWS,
    STEPS,
    Row,
    build,
    has_full_mmcv,
    hrnet,
    images_of,
    lines_of,
    predict,
    tried,
    types_in,
    write_lines,
)

pytestmark = pytest.mark.versions

FAST = ('FCNHead', 'PSPHead', 'UPerHead', 'SegformerHead', 'OCRHead')
BY_NAME = {row.name: row for row in ROWS}
FAULTY = [row for row in ROWS if row.faults or row.compiled]


def by_name(rows):
    return [
        pytest.param(
            row, id=row.name, marks=() if row.name in FAST else pytest.mark.slow
        )
        for row in rows
    ]


def faults_of(row: Row) -> dict:
    """The steps that must end with an error in this environment."""
    if row.compiled and not has_full_mmcv():
        return dict.fromkeys(('train', 'predict'), MISSING_OP)
    return row.faults


def assert_faults(row, outcome):
    assert set(outcome.errors) == set(faults_of(row)), outcome.errors
    for step, fault in faults_of(row).items():
        assert fault.matches(outcome.errors[step]), repr(outcome.errors[step])


@pytest.fixture(scope='module')
def page(request):
    """Takes the lines that are found, and writes them if asked to."""
    found = {}
    yield found
    if request.config.getoption('--write-heads-page'):
        write_lines(found)


@pytest.mark.parametrize('row', by_name(ROWS))
def test_row(row, page, request):
    """It does what it can, says why it cannot do the rest, and is so on the page."""
    if row.needs:
        pytest.importorskip(row.needs, reason=f'{row.name} needs {row.needs}')
    outcome = tried(row)
    page[row.name] = outcome.line()
    assert_faults(row, outcome)
    for step in STEPS:
        works = not faults_of(row).keys() & {step, 'predict' if step == 'batch' else ''}
        assert outcome.works(step) == works, (step, outcome)
    is_of_the_page = not (IS_OLD and row.name in OLD_FAULTS)
    if is_of_the_page and not request.config.getoption('--write-heads-page'):
        assert outcome.line() == lines_of(PAGE.read_text())[row.name]


@pytest.mark.slow
@pytest.mark.parametrize('row', [pytest.param(row, id=row.name) for row in FAULTY])
def test_the_fault_is_the_head_s(row):
    """A stock backbone with maps of the same sizes meets the same error."""
    assert_faults(row, tried(row, hrnet(row.channels)))


class TestRows:
    def test_none_is_forgotten(self):
        """A head or a neck that a new version ships needs a row."""
        shipped = {
            *mmseg.models.decode_heads.__all__,
            *mmseg.models.necks.__all__,
        }
        named = {kind for row in ROWS for kind in types_in(row.model)}
        assert shipped - named == set()

    def test_page_has_them_in_this_order(self):
        lines = lines_of(PAGE.read_text())
        assert list(lines) == [row.name for row in ROWS]
        assert [line for line in lines.values() if len(line) > 120] == []

    def test_a_fault_has_a_reason(self):
        assert [row.name for row in FAULTY if not row.note] == []


class TestTheseTests:
    """What they must find."""

    def test_parameters_without_a_gradient(self):
        row = BY_NAME['PSPHead']
        outcome = tried(row, hrnet())
        assert outcome.without_gradient
        assert outcome.cell('train') == 'no'
        assert outcome.cell('predict') == 'yes'

    def test_a_head_that_mixes_the_batch(self):
        mixing = dict(type='BN', track_running_stats=False)
        head = dict(BY_NAME['FCNHead'].model['decode_head'], norm_cfg=mixing)
        row = dataclasses.replace(BY_NAME['FCNHead'], model=dict(decode_head=head))
        outcome = tried(row)
        assert outcome.cell('train') == outcome.cell('predict') == 'yes'
        assert outcome.cell('batch') == 'no'


def test_test_time_augmentation():
    """The stock model averages the probabilities of an image and its mirror image."""
    model = build(BY_NAME['FCNHead']).eval()
    wrapped = MODELS.build(dict(type='SegTTAModel', module=model))
    image = images_of((65, 97))[0]
    inputs = [[image], [image.flip(-1)]]
    samples = [
        [
            SegDataSample(
                metainfo=dict(
                    ori_shape=(65, 97),
                    img_shape=(65, 97),
                    img_path='image.png',
                    flip=flip,
                    flip_direction='horizontal',
                )
            )
        ]
        for flip in (False, True)
    ]
    with torch.no_grad():
        (result,) = wrapped.test_step(dict(inputs=inputs, data_samples=samples))
    plain, mirrored = (predict(model, images)[0].softmax(dim=0) for images in inputs)
    expected = (plain + mirrored.flip(-1)).argmax(dim=0)
    assert torch.equal(result.pred_sem_seg.data.squeeze(), expected)
    assert not torch.equal(expected, plain.argmax(dim=0))
