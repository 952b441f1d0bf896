import logging

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

pytestmark = pytest.mark.versions
HOOK = dict(type='ImplicitGradientHook')
MODEL = dict(type='Classifier')


@pytest.fixture
def train(make_runner, caplog):
    """Trains with it; returns which parameters do not, and what was warned of."""

    def run(names, **kwargs):
        cfg = Config(dict(model=MODEL, activation_checkpointing=names))
        runner = make_runner([HOOK], length=1, cfg=cfg, **kwargs)
        untrained = {name for name, _ in runner.model.named_parameters()}
        for name, parameter in runner.model.named_parameters():
            parameter.register_hook(lambda _, name=name: untrained.discard(name))
        runner.logger.addHandler(caplog.handler)
        with caplog.at_level(logging.WARNING):
            runner.train()
        said = [record.getMessage() for record in caplog.records]
        return untrained, [text for text in said if 'with_cp' in text]

    return run


@pytest.mark.parametrize(
    'names',
    [
        'backbone.equilibrium',
        'backbone.equilibrium.cell',
        ['backbone.stem', 'backbone.equilibrium.cell.branches.0.0'],
    ],
)
def test_of_a_part_of_the_layer(train, names):
    """It would end in backward, with a message that names nothing of the config."""
    name = names if isinstance(names, str) else names[-1]
    with pytest.raises(ValueError, match=f"for '{name}', .* with_cp=True"):
        train(names)


@pytest.mark.filterwarnings('ignore:.*requires_grad=True. Gradients will be None')
def test_of_the_whole_backbone(train):
    """As with any other backbone, it gets no gradient."""
    untrained, (said,) = train('backbone')
    assert "of 'backbone' leaves it without gradients" in said
    assert untrained == {
        name for name, _ in MODELS.build(MODEL).named_parameters() if 'fc' not in name
    }


@pytest.mark.parametrize('names', [None, [], 'backbone.injection'])
def test_of_something_else(train, names):
    assert train(names) == (set(), [])


def test_what_the_message_names(train):
    """The way out."""
    assert train(None, model=dict(MODEL, with_cp=True)) == (set(), [])


def test_evaluation_does_not_use_it(make_runner):
    cfg = Config(
        dict(
            model=MODEL,
            activation_checkpointing='backbone.equilibrium.cell',
        )
    )
    make_runner([HOOK], cfg=cfg).val()
