"""The check of data sets, by its command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

CAMVID = 'configs/segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'
HEIGHT, WIDTH = 16, 20

SEGMENTATION = """
default_scope = 'mmseg'
model = dict(decode_head=dict(num_classes=3), auxiliary_head=dict(num_classes=3))


def loader(split, *augmentation):
    return dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='BaseSegDataset',
            data_root='data',
            metainfo=dict(classes=('road', 'sky', 'car')),
            data_prefix=dict(img_path=f'img/{split}', seg_map_path=f'ann/{split}'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                *augmentation,
                dict(type='PackSegInputs'),
            ],
        ),
    )


train_dataloader = loader(
    'train',
    dict(type='RandomCrop', crop_size=(8, 8)),
    dict(type='RandomFlip', prob=0.5),
)
val_dataloader = loader('val')
test_dataloader = val_dataloader
"""

CLASSIFICATION = """
default_scope = 'mmpretrain'
model = dict(head=dict(num_classes=3))


def loader(split):
    return dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_root='data',
            data_prefix=split,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        ),
    )


train_dataloader = loader('train')
val_dataloader = loader('val')
"""


@TRANSFORMS.register_module(force=True)
class Unlucky:
    """Fails by chance, or returns nothing."""

    def __init__(self, fails=True):
        self.fails = fails

    def __call__(self, results):
        if np.random.rand() < 0.5:
            return results
        if self.fails:
            raise ValueError('no luck')
        return None


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def random_image(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('misc/check_dataset.py')


@pytest.fixture
def segmentation(tmp_path):
    """A folder with a sound data set for segmentation and its config."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for index in range(count):
            save(tmp_path / f'data/img/{split}/{index}.jpg', random_image(rng))
            mask = rng.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
            mask[0, :3] = 255
            save(tmp_path / f'data/ann/{split}/{index}.png', mask)
    (tmp_path / 'config.py').write_text(SEGMENTATION)
    return tmp_path


@pytest.fixture
def classification(tmp_path):
    """The same for classification, with a folder a class."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 3), ('val', 2)):
        for label in ('cat', 'dog', 'owl'):
            for index in range(count):
                path = tmp_path / f'data/{split}/{label}/{index}.png'
                save(path, random_image(rng))
    (tmp_path / 'config.py').write_text(CLASSIFICATION)
    return tmp_path


@pytest.fixture
def check(tool, capsys):
    """Runs the tool on the config in this folder; returns exit code and findings."""

    def run(*arguments, text=''):
        with Path('config.py').open('a') as file:
            file.write(text)
        code = tool.main(['config.py', *arguments])
        out = capsys.readouterr().out
        lines = out.splitlines()
        findings = [s for s in lines if s.startswith(('error: ', 'warning: '))]
        assert lines[-1] == (
            f'{sum(s.startswith("error") for s in findings)} errors, '
            f'{sum(s.startswith("warning") for s in findings)} warnings'
        )
        return code, findings, out

    return run


def truncated_image(root):
    path = root / 'data/img/train/1.jpg'
    path.write_bytes(path.read_bytes()[:-200])


def no_image(root):
    (root / 'data/img/train/1.jpg').write_text('not an image')


def missing_mask(root):
    (root / 'data/ann/train/1.png').unlink()


def label_outside(root):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3, 4:6] = 3, 77
    save(root / 'data/ann/train/1.png', mask)


def other_size(root):
    save(root / 'data/ann/train/1.png', np.ones((12, 14), dtype=np.uint8))


def transposed(root):
    save(root / 'data/ann/train/1.png', np.ones((WIDTH, HEIGHT), dtype=np.uint8))


def colours(root):
    save(root / 'data/ann/train/1.png', np.full((HEIGHT, WIDTH, 3), 1, dtype=np.uint8))


def sixteen_bits(root):
    save(root / 'data/ann/train/1.png', np.full((HEIGHT, WIDTH), 257, dtype=np.uint16))


class TestSegmentation:
    def test_sound(self, segmentation, check):
        before = sorted(segmentation.rglob('*'))
        code, findings, out = check()
        assert (code, findings) == (0, [])
        assert 'test is the data set of val' in out
        assert sorted(segmentation.rglob('*')) == before

    @pytest.mark.parametrize(
        ('fault', 'message'),
        [
            (truncated_image, 'LoadImageFromFile failed: '),
            (no_image, 'LoadImageFromFile failed: '),
            (missing_mask, 'LoadAnnotations failed: FileNotFoundError: '),
            (
                label_outside,
                '2 pixels outside of the 3 classes, with the values 3, 77',
            ),
            (other_size, f'mask of 12x14, image of {HEIGHT}x{WIDTH}'),
            (transposed, f'mask of {WIDTH}x{HEIGHT}, image of {HEIGHT}x{WIDTH}'),
            (colours, f'mask of shape ({HEIGHT}, {WIDTH}, 3), must have one channel'),
            (sixteen_bits, 'mask of mode I'),
        ],
    )
    def test_fault_of_a_sample(self, segmentation, check, fault, message):
        fault(segmentation)
        code, findings, _ = check()
        place = 'error: train 1 (data/img/train/1.jpg, data/ann/train/1.png): '
        assert code == 1
        assert [s[: len(place + message)] for s in findings] == [place + message]

    def test_every_fault_is_reported(self, segmentation, check):
        for index in (0, 1):
            (segmentation / f'data/ann/val/{index}.png').unlink()
        missing_mask(segmentation)
        code, findings, _ = check()
        assert code == 1
        places = [s.split(' (')[0] for s in findings]
        assert places == ['error: train 1', 'error: val 0', 'error: val 1']

    def test_augmentation_is_no_fault(self, segmentation, check):
        code, findings, _ = check(
            text="train_dataloader['dataset']['pipeline'].insert(2, "
            "dict(type='RandomCutOut', prob=1.0, n_holes=2, cutout_shape=(3, 3), "
            'seg_fill_in=77))\n'
        )
        assert (code, findings) == (0, [])

    def test_ignored_mask(self, segmentation, check):
        mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
        save(segmentation / 'data/ann/val/1.png', mask)
        code, findings, _ = check()
        assert code == 0
        assert findings == [
            (
                'warning: val 1 (data/img/val/1.jpg, data/ann/val/1.png): '
                'every pixel of the mask is ignored'
            )
        ]

    def test_ignore_index_of_the_head(self, segmentation, check):
        code, findings, _ = check('--cfg-options', 'model.decode_head.ignore_index=2')
        assert code == 1
        assert len(findings) == 6 + 2  # every mask has 255, no class is 2 any more
        assert '3 pixels outside of the 3 classes, with the values 255' in findings[0]
        assert findings[-1] == 'warning: val: classes that never occur: car'

    def test_counts_and_class_that_never_occurs(self, segmentation, check):
        pixels = np.zeros(3, dtype=int)
        for index in range(4):
            path = segmentation / f'data/ann/train/{index}.png'
            mask = np.array(Image.open(path))
            mask[mask == 1] = index == 0
            save(path, mask)
            pixels += [np.sum(mask == k) for k in range(3)]
        code, findings, out = check('--splits', 'train')
        assert (code, findings) == (0, [])
        rows = [line.split() for line in out.splitlines()[-5:-2]]
        assert rows == [
            ['road', str(pixels[0]), '4'],
            ['sky', str(pixels[1]), '1'],
            ['car', str(pixels[2]), '4'],
        ]
        (segmentation / 'data/img/train/0.jpg').unlink()
        code, findings, _ = check('--splits', 'train')
        assert code == 0
        assert findings == ['warning: train: classes that never occur: sky']

    def test_image_in_two_splits(self, segmentation, check):
        for folder, suffix in (('img', 'jpg'), ('ann', 'png')):
            data = segmentation / f'data/{folder}'
            shutil.copy(data / f'train/3.{suffix}', data / f'val/copy.{suffix}')
        code, findings, _ = check()
        assert code == 0
        assert findings == [
            (
                'warning: val 2 (data/img/val/copy.jpg, data/ann/val/copy.png): '
                'the same image as train 3 (data/img/train/3.jpg, data/ann/train/3.png)'
            )
        ]

    def test_validation_on_train(self, segmentation, check):
        options = [
            f'val_dataloader.dataset.data_prefix.{key}={folder}/train'
            for key, folder in (('img_path', 'img'), ('seg_map_path', 'ann'))
        ]
        code, findings, _ = check('--splits', 'train', 'val', '--cfg-options', *options)
        assert code == 0
        assert len(findings) == 4
        assert all('the same image as train' in finding for finding in findings)

    @pytest.mark.parametrize(
        ('option', 'message'),
        [
            (
                'val_dataloader.dataset.img_suffix=.bmp',
                (
                    'error: val: cannot be built: ValueError: no samples in '
                    "data_root='data'"
                ),
            ),
            (
                'val_dataloader.dataset.data_prefix.img_path=img/absent',
                'error: val: cannot be built: FileNotFoundError: ',
            ),
            (
                'val_dataloader.dataset.type=NoDataset',
                'error: val: cannot be built: KeyError: ',
            ),
            (
                "val_dataloader.dataset.metainfo.classes=('road','car','sky')",
                (
                    'error: val: its 3 classes are not the 3 of the data set before: '
                    'their order'
                ),
            ),
        ],
    )
    def test_fault_of_a_split(self, segmentation, check, option, message):
        code, findings, out = check('--splits', 'train', 'val', '--cfg-options', option)
        assert code == 1
        assert [s[: len(message)] for s in findings] == [message]
        assert 'road' in out  # the other split is checked all the same

    def test_classes_of_the_heads(self, segmentation, check):
        code, findings, _ = check(
            *('--splits', 'val', '--cfg-options'),
            *('model.decode_head.num_classes=19', 'model.auxiliary_head.num_classes=2'),
        )
        assert code == 1
        assert findings == [
            'error: val: 3 classes, but num_classes=19 in model.decode_head',
            'error: val: 3 classes, but num_classes=2 in model.auxiliary_head',
        ]

    def test_no_classes(self, segmentation, check):
        code, findings, _ = check(
            text="train_dataloader['dataset'].pop('metainfo')\n"
            "val_dataloader['dataset'].pop('metainfo')\n"
        )
        assert code == 0
        assert all('no classes in its metainfo' in finding for finding in findings)
        assert len(findings) == 2

    def test_masks_that_are_not_loaded(self, segmentation, check):
        text = "for d in (train_dataloader, val_dataloader):\n    del d['dataset']"
        code, findings, _ = check(
            text=f"{text}['pipeline'][1]\n"
            "train_dataloader['dataset']['pipeline'][1:2] = []\n"
        )
        assert code == 1
        assert len(findings) == 6
        assert all(finding.endswith(': no annotation') for finding in findings)

    @pytest.mark.parametrize('fails', [True, False])
    def test_chance_is_the_same_in_every_run(self, segmentation, check, fails):
        code, findings, _ = check(
            text="train_dataloader['dataset']['pipeline'].insert("
            f"2, dict(type='Unlucky', fails={fails}))\n"
        )
        assert code == 1
        assert 0 < len(findings) < 4  # of four samples; none is replaced by another
        message = 'failed: ValueError: no luck' if fails else 'returned nothing'
        assert all(finding.endswith(f': Unlucky {message}') for finding in findings)
        assert check()[1] == findings
        assert check('--num-workers', '1')[1] == findings

    def test_wrappers(self, segmentation, check):
        missing_mask(segmentation)
        text = """
part = train_dataloader['dataset']
train_dataloader['dataset'] = dict(
    type='ConcatDataset',
    datasets=[
        dict(type='RepeatDataset', times=3, dataset=dict(part, indices=[0, 2])),
        part,
    ],
)
"""
        code, findings, _ = check(text=text)
        assert code == 1
        assert len(findings) == 1
        assert findings[0].startswith('error: train[1] 1 (data/img/train/1.jpg')


def save_with_orientation(path, array, orientation, **kwargs):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif, **kwargs)


# How stock loaders turn an image of an EXIF orientation.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class TestOrientation:
    """Photos carry their orientation, masks do not, and loaders turn photos alone."""

    @pytest.fixture
    def photo(self, segmentation):
        def make(orientation, width=WIDTH, suffix='.jpg'):
            (segmentation / 'data/img/train/1.jpg').unlink()
            image = random_image(np.random.default_rng(1))[:, :width]
            path = segmentation / f'data/img/train/1{suffix}'
            save_with_orientation(path, image, orientation)
            if suffix != '.jpg':
                path.rename(path.with_suffix('.jpg'))  # readers look at the content
            return np.random.default_rng(2).integers(0, 3, (HEIGHT, width), np.uint8)

        return make

    def check_train(self, check, *options):
        code, findings, _ = check('--splits', 'train', '--cfg-options', *options)
        assert code == bool(findings)
        assert all(finding.startswith('error: train 1 (') for finding in findings)
        return [finding.split('): ')[1] for finding in findings]

    OPTIONS = {
        'cv2': ['model.decode_head.ignore_index=255'],
        'pillow': ['train_dataloader.dataset.pipeline.0.imdecode_backend=pillow'],
    }

    @pytest.mark.parametrize('backend', ['cv2', 'pillow'])
    @pytest.mark.parametrize('suffix', ['.jpg', '.png'])
    @pytest.mark.parametrize('orientation', TURNS)
    def test_mask_of_the_file(
        self, segmentation, photo, check, orientation, backend, suffix
    ):
        save(segmentation / 'data/ann/train/1.png', photo(orientation, suffix=suffix))
        found = self.check_train(check, *self.OPTIONS[backend])
        if orientation == 1:
            assert found == []
        elif orientation < 5:
            (message,) = found
            assert f'image turned by its EXIF orientation {orientation} ' in message
        else:
            (message,) = found
            assert message == (
                f'mask of {HEIGHT}x{WIDTH}, image of {WIDTH}x{HEIGHT} as EXIF '
                f'orientation {orientation} turns it'
            )

    @pytest.mark.parametrize('orientation', TURNS)
    def test_square(self, segmentation, photo, check, orientation):
        save(segmentation / 'data/ann/train/1.png', photo(orientation, HEIGHT))
        found = self.check_train(check, *self.OPTIONS['cv2'])
        assert len(found) == (orientation != 1)

    @pytest.mark.parametrize('orientation', [5, 6, 7, 8])
    def test_mask_of_the_upright_image(self, segmentation, photo, check, orientation):
        mask = TURNS[orientation](photo(orientation))
        save(segmentation / 'data/ann/train/1.png', mask)
        assert self.check_train(check, *self.OPTIONS['cv2']) == []

    @pytest.mark.parametrize('orientation', TURNS)
    def test_loader_that_does_not_turn(self, segmentation, photo, check, orientation):
        save(segmentation / 'data/ann/train/1.png', photo(orientation))
        option = 'pipeline.0.color_type=color_ignore_orientation'
        assert self.check_train(check, f'train_dataloader.dataset.{option}') == []

    def test_symmetrical_image(self, segmentation, check):
        path = segmentation / 'data/img/train/1.jpg'
        image = np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
        save_with_orientation(path, image, 3)
        assert self.check_train(check, *self.OPTIONS['cv2']) == []

    @pytest.mark.parametrize(
        ('of_image', 'of_mask', 'message'),
        [
            (1, 3, 'mask with EXIF orientation 3, by which it is not turned'),
            (2, 3, 'mask with EXIF orientation 3, by which it is not turned'),
            (3, 3, 'image turned by its EXIF orientation 3 '),
        ],
    )
    def test_orientation_of_the_mask(
        self, segmentation, photo, check, of_image, of_mask, message
    ):
        path = segmentation / 'data/ann/train/1.png'
        save_with_orientation(path, photo(of_image), of_mask)
        (found,) = self.check_train(check, *self.OPTIONS['cv2'])
        assert found.startswith(message)

    def test_both_as_they_are_stored(self, segmentation, photo, check):
        save_with_orientation(segmentation / 'data/ann/train/1.png', photo(3), 3)
        option = 'pipeline.0.color_type=color_ignore_orientation'
        assert self.check_train(check, f'train_dataloader.dataset.{option}') == []

    def test_mask_that_is_loaded_first(self, segmentation, photo, check):
        save(segmentation / 'data/ann/train/1.png', photo(3))
        code, findings, _ = check(
            '--splits',
            'train',
            text="p = train_dataloader['dataset']['pipeline']\np[:2] = p[1::-1]\n",
        )
        assert code == 1
        assert [s.split('): ')[1][:30] for s in findings] == [
            'image turned by its EXIF orien'
        ]


class TestSeveralLabels:
    """Classifiers of which an image has any number of labels, or several tasks."""

    @pytest.fixture
    def annotate(self, classification):
        def write(metainfo, labels, dataset, head):
            paths = sorted(classification.glob('data/train/*/*.png'))
            items = [
                dict(img_path=str(path), **label) for path, label in zip(paths, labels)
            ]
            content = dict(metainfo=metainfo, data_list=items)
            (classification / 'data/ann.json').write_text(json.dumps(content))
            return (
                f'model = dict(head={head})\n'
                f"train_dataloader['dataset'].update(type={dataset!r}, "
                f"ann_file='{classification}/data/ann.json', data_prefix='', "
                f"data_root='')\n"
            )

        return write

    def test_image_of_no_class(self, annotate, check):
        text = annotate(
            dict(classes=['cat', 'dog']),
            [dict(gt_label=label) for label in ([], [1], [0, 1], [], [2, 0])],
            'MultiLabelDataset',
            dict(num_classes=2),
        )
        code, findings, out = check('--splits', 'train', text=text)
        assert code == 1
        assert [s.split('): ')[1] for s in findings] == [
            '1 labels outside of the 2 classes, with the values 2'
        ]
        rows = [line.split() for line in out.splitlines()[-4:-2]]
        assert rows == [['cat', '2', '2'], ['dog', '2', '2']]

    TASKS = dict(tasks=['kind', 'wears'])
    HEAD = dict(
        type='MultiTaskHead',
        task_heads=dict(
            kind=dict(type='LinearClsHead', num_classes=3),
            wears=dict(type='MultiLabelLinearClsHead', num_classes=4),
        ),
    )
    PACK = (
        "train_dataloader['dataset']['pipeline'][-1] = dict("
        "type='PackMultiTaskInputs', multi_task_fields=('gt_label',))\n"
    )

    @pytest.mark.parametrize(
        ('labels', 'problem'),
        [
            (dict(kind=2, wears=[0, 3]), None),
            (dict(kind=2, wears=[]), None),
            (dict(kind=0), None),
            (dict(), 'no annotation'),
            (
                dict(kind=3),
                '1 labels of the task kind outside of the 3 classes, with the values 3',
            ),
            (
                dict(wears=[0, 4, -1]),
                (
                    '2 labels of the task wears outside of the 4 classes, '
                    'with the values -1, 4'
                ),
            ),
            (dict(kind=1, colour=1), 'labels of unknown tasks: colour'),
        ],
    )
    def test_tasks(self, annotate, check, labels, problem):
        samples = [dict(gt_label=dict(kind=1, wears=[1])), dict(gt_label=labels)]
        text = annotate(self.TASKS, samples, 'MultiTaskDataset', self.HEAD)
        code, findings, _ = check('--splits', 'train', text=text + self.PACK)
        assert code == (problem is not None)
        expected = [] if problem is None else [problem]
        assert [s.split('): ')[1] for s in findings] == expected

    def test_head_without_labels(self, annotate, check):
        samples = [dict(gt_label=dict(kind=1))]
        text = annotate(dict(tasks=['kind']), samples, 'MultiTaskDataset', self.HEAD)
        code, findings, _ = check('--splits', 'train', text=text + self.PACK)
        assert code == 1
        assert findings == ['error: train: no labels for heads of the model: wears']

    def test_damaged_image(self, annotate, check, classification):
        samples = [dict(gt_label=dict(kind=1, wears=[1]))] * 3
        text = annotate(self.TASKS, samples, 'MultiTaskDataset', self.HEAD)
        (classification / 'data/train/cat/1.png').write_bytes(b'')
        code, findings, _ = check('--splits', 'train', text=text + self.PACK)
        assert code == 1
        (finding,) = findings
        assert finding.startswith('error: train 1 (')
        assert 'cat/1.png): LoadImageFromFile failed' in finding


class TestClassification:
    def test_sound(self, classification, check):
        code, findings, out = check()
        assert (code, findings) == (0, [])
        assert ['dog', '3', '3', '2', '2'] in [s.split() for s in out.splitlines()]

    def test_labels(self, classification, check):
        lines = ['cat/0.png 0', 'dog/1.png 3', 'owl/2.png -1', 'owl/1.png 2']
        (classification / 'data/train.txt').write_text('\n'.join(lines))
        code, findings, _ = check(
            text="train_dataloader['dataset'].update(ann_file='train.txt', "
            "classes=['cat', 'dog', 'owl'])\n"
        )
        assert code == 1
        assert findings == [
            (
                'error: train 1 (data/train/dog/1.png): '
                '1 labels outside of the 3 classes, with the values 3'
            ),
            (
                'error: train 2 (data/train/owl/2.png): '
                '1 labels outside of the 3 classes, with the values -1'
            ),
            'warning: train: classes that never occur: dog',
        ]

    def test_damaged_images(self, classification, check):
        (classification / 'data/val/dog/1.png').write_bytes(b'')
        path = classification / 'data/val/owl/0.png'
        path.write_bytes(path.read_bytes()[:-100])
        code, findings, _ = check()
        assert code == 1
        assert [s.split(')')[0] for s in findings] == [
            'error: val 3 (data/val/dog/1.png',
            'error: val 4 (data/val/owl/0.png',
        ]

    def test_class_folders_that_differ(self, classification, check):
        (classification / 'data/val/owl').rename(classification / 'data/val/rat')
        code, findings, _ = check()
        assert code == 1
        assert findings == [
            'error: val: its 3 classes are not the 3 of the data set before: owl, rat'
        ]

    def test_classes_of_the_head(self, classification, check):
        code, findings, _ = check(
            '--splits', 'val', '--cfg-options', 'model.head.num_classes=1000'
        )
        assert code == 1
        assert findings == ['error: val: 3 classes, but num_classes=1000 in model.head']

    @pytest.mark.parametrize(('split', 'n_errors'), [('train', 9), ('test', 0)])
    def test_no_labels(self, classification, check, split, n_errors):
        text = f"""
{split}_dataloader = loader('train')
{split}_dataloader['dataset'].update(with_label=False, classes=['cat', 'dog', 'owl'])
"""
        code, findings, _ = check('--splits', split, text=text)
        assert code == (n_errors > 0)
        assert len(findings) == n_errors
        assert all(finding.endswith(': no annotation') for finding in findings)

    def test_nothing_is_downloaded(self, classification, check):
        text = """
train_dataloader['dataset'] = dict(
    type='RepeatDataset',
    times=2,
    dataset=dict(type='CIFAR10', data_root='cifar10', split='train'),
)
"""
        code, findings, _ = check('--splits', 'train', text=text)
        assert code == 1
        assert 'Cannot find CIFAR10 dataset' in findings[0]
        assert not (classification / 'cifar10').exists()

    def test_many_classes(self, tmp_path, check):
        rng = np.random.default_rng(0)
        for label in range(45):
            for index in range(1 + (label < 42)):
                save(
                    tmp_path / f'data/train/c{label:02}/{index}.png', random_image(rng)
                )
        (tmp_path / 'config.py').write_text(CLASSIFICATION)
        options = ['--cfg-options', 'model.head.num_classes=45']
        code, _, out = check('--splits', 'train', *options)
        assert code == 0
        assert 'the 40 rarest of 45 classes' in out
        rows = [line.split() for line in out.splitlines()[-42:-2]]
        assert rows[:4] == [
            *([f'c{label}', '1', '1'] for label in (42, 43, 44)),
            ['c00', '2', '2'],
        ]


def test_labels_of_another_toolbox(classification, check, monkeypatch):
    """Its samples are opened; how it stores labels is not known."""
    toolbox = Path('other_toolbox')
    toolbox.mkdir()
    (toolbox / '__init__.py').touch()
    monkeypatch.syspath_prepend(Path.cwd())
    (classification / 'data/val/dog/1.png').write_bytes(b'')
    text = """
default_scope = 'other_toolbox'
for d in (train_dataloader, val_dataloader):
    d['dataset']['type'] = 'mmpretrain.CustomDataset'
    for transform in d['dataset']['pipeline']:
        transform['type'] = 'mmpretrain.' + transform['type']
"""
    code, findings, _ = check(text=text)
    assert code == 1
    assert findings[0] == 'warning: train: labels of other_toolbox are not checked'
    assert findings[1] == 'warning: val: labels of other_toolbox are not checked'
    assert findings[2].startswith('error: val 3 (data/val/dog/1.png)')
    assert len(findings) == 3


class TestArguments:
    def test_split_the_config_lacks(self, classification, tool):
        with pytest.raises(ValueError, match='train, val, got val, test'):
            tool.main(['config.py', '--splits', 'val', 'test'])

    def test_bad_number_of_workers(self, classification, tool, capsys):
        with pytest.raises(SystemExit):
            tool.main(['config.py', '--num-workers', '-1'])
        assert '--num-workers: must be at least 0, got -1' in capsys.readouterr().err


def test_camvid(root, shared, tool, tmp_path, capsys):
    """Frequencies are those that the data set's own notes give."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/camvid').symlink_to(shared / 'data/camvid')
    assert tool.main([str(root / CAMVID), '--splits', 'val']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == '0 errors, 0 warnings'
    rows = {line[:12].strip(): line[12:].split() for line in lines[-13:-2]}
    assert len(rows) == 11
    assert {images for _, images in rows.values()} == {'101'}
    percent = {k: 100 * int(v.replace(',', '')) for k, (v, _) in rows.items()}
    n_pixels = 101 * 480 * 360
    assert percent['sky'] / n_pixels == pytest.approx(9.177, abs=1e-3)
    assert percent['bicyclist'] / n_pixels == pytest.approx(2.217, abs=1e-3)
