"""The training that tests interrupt and resume."""

from pathlib import Path

BASE = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
# Dropout and random augmentation on.
_TEXT = """
_base_ = [{base!r}]
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(
        dropout=0.2,
        forward_solver=dict(max_evals=6),
        gradient=dict(solver=dict(max_evals=5)),
    ),
    decode_head=dict(dropout_ratio=0.1),
)
train_dataloader = dict(
    batch_size=2,
    num_workers={workers},
    persistent_workers={workers} > 0,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(32, 32)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ]
    ),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(indices=2)
)
train_cfg = dict(max_iters={iters}, val_interval=2 * {interval})
default_hooks = dict(
    equilibrium=dict(pretrain_iters={pretrain_iters}),
    checkpoint=dict(interval={interval}),
    logger=dict(interval=1),
)
"""


def write_config(
    path: Path, *, workers: int, iters: int, interval: int, pretrain_iters: int
) -> Path:
    """Writes the config, and returns its path.

    Args:
        path (Path): The file.
        workers (int): Workers of the data loader.
        iters (int): Length of the training.
        interval (int): Iterations between checkpoints.
        pretrain_iters (int): Iterations in the unrolled mode; those after them are at
            the equilibrium.
    """
    base = Path(__file__).resolve().parents[1] / 'configs' / BASE
    path.write_text(
        _TEXT.format(
            base=str(base),
            workers=workers,
            iters=iters,
            interval=interval,
            pretrain_iters=pretrain_iters,
        )
    )
    return path
