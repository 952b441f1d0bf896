"""Draws test images with their ground truth and the predicted segmentation."""

import argparse
from pathlib import Path

import mmcv
import torch

from mdeq_mm.utils.launch import add_cfg_options, load_config, load_model
from mdeq_mm.visualization import plot_segmentations


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', default='segmentation.png', help='default: %(default)s'
    )
    parser.add_argument(
        '--num-samples',
        type=int,
        default=8,
        help='images, evenly spaced over the test set; default: %(default)s',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if cfg.default_scope != 'mmseg':
        raise ValueError(
            f"{args.config} must be of default_scope 'mmseg', got {cfg.default_scope!r}"
        )
    model, loader = load_model(cfg, args.checkpoint)
    dataset = loader.dataset
    n_samples = min(args.num_samples, len(dataset))
    samples = []
    for position in range(n_samples):
        data = dataset[position * len(dataset) // n_samples]
        batch = {key: [value] for key, value in data.items()}
        with torch.no_grad():
            (result,) = model.test_step(batch)
        image = mmcv.imread(result.img_path, channel_order='rgb')
        maps = (result.gt_sem_seg, result.pred_sem_seg)
        samples.append((image, *(m.data[0].cpu().numpy() for m in maps)))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    plot_segmentations(
        samples,
        args.out,
        classes=dataset.metainfo['classes'],
        palette=dataset.metainfo['palette'],
        title=Path(args.config).stem,
    )
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
