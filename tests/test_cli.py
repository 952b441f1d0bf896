from argparse import ArgumentParser

import pytest

from mdeq_mm import cli
from mdeq_mm.apis import model_files


@pytest.fixture
def parser():
    parser = ArgumentParser()
    cli.add_checkpoint(parser)
    cli.add_shape(parser)
    cli.add_cfg_options(parser)
    parser.add_argument('--number', type=cli.int_of_at_least(2))
    parser.add_argument('--tol', type=cli.positive_float)
    parser.add_argument('--speed', type=cli.non_negative_float)
    parser.add_argument('--share', type=cli.fraction)
    return parser


def test_values(parser):
    args = parser.parse_args(
        [
            *('config.py', 'file.pth', '--shape', '3', '4', '--number', '2'),
            *(
                '--tol',
                '1e-3',
                '--speed',
                '0',
                '--share',
                '1',
                '--cfg-options',
                'a.b=1',
                'c=[1,2]',
            ),
        ]
    )
    assert vars(args) == dict(
        config='config.py',
        checkpoint='file.pth',
        allow_partial=False,
        shape=[3, 4],
        cfg_options={'a.b': 1, 'c': [1, 2]},
        number=2,
        tol=1e-3,
        speed=0,
        share=1,
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--shape 0 4', 'argument --shape: must be at least 1, got 0'),
        ('--number 1', 'argument --number: must be at least 2, got 1'),
        ('--number x', "argument --number: invalid int value: 'x'"),
        ('--tol 0', 'argument --tol: must be positive, got 0'),
        ('--tol nan', 'argument --tol: must be positive, got nan'),
        ('--tol inf', 'argument --tol: must be positive, got inf'),
        ('--speed=-1', 'argument --speed: must not be negative, got -1'),
        ('--speed nan', 'argument --speed: must not be negative, got nan'),
        ('--share=-0.1', 'argument --share: must be in [0, 1], got -0.1'),
        ('--share nan', 'argument --share: must be in [0, 1], got nan'),
    ],
)
def test_refused(parser, capsys, options, message):
    with pytest.raises(SystemExit):
        parser.parse_args(['config.py', 'file.pth', *options.split()])
    assert message in capsys.readouterr().err


class TestName:
    """The name of a model that comes with its weights stands for both files."""

    TRAINED = 'fcn_mdeq-micro-contraction_1xb8-600_earth-96x96'

    def test_trained(self, parser):
        args = parser.parse_args([self.TRAINED, '--number', '2'])
        assert (args.config, args.checkpoint) == model_files(self.TRAINED)

    def test_before_another_argument(self, parser):
        parser.add_argument('image')
        args = parser.parse_args([self.TRAINED, 'image.png'])
        assert (args.config, args.checkpoint) == model_files(self.TRAINED)
        assert args.image == 'image.png'
        args = parser.parse_args(['config.py', 'file.pth', 'image.png'])
        assert (args.config, args.checkpoint) == ('config.py', 'file.pth')

    @pytest.mark.parametrize(
        ('name', 'message'),
        [
            ('mdeq-tiny_1xb64_digits', 'no weights come with the model'),
            ('config.py', "no checkpoint behind config.py: there is no model 'config"),
        ],
    )
    def test_no_weights(self, parser, capsys, name, message):
        with pytest.raises(SystemExit):
            parser.parse_args([name])
        assert message in capsys.readouterr().err
