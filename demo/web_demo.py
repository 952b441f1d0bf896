"""Shows in a browser how tolerance and budget change the predictions of models.

The page lists the models by the names of their config files. It takes an image, and
draws the prediction and the convergence of its equilibrium for the tolerance and the
budget that two sliders choose.
"""

from __future__ import annotations

import argparse
import math
import os
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from mdeq_mm.apis import list_models, load_config, model_files
from mdeq_mm.cli import add_allow_partial, int_of_at_least
from mdeq_mm.inference import (
    LEAST_TOL,
    MOST_EVALS,
    Explorer,
    Predictor,
    UploadLimits,
)

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
NUM_EXAMPLES = 12
NO_IMAGE = '### Choose an image'
HEIGHT = 280  # of images, in pixels
# Small images fill their frames, too.
CSS = '.whole img { width: 100%; height: 100%; object-fit: contain; }'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help='name of a model that comes with its weights, or a config file and a '
        'checkpoint file behind it',
    )
    parser.add_argument(
        '--examples',
        type=Path,
        metavar='FOLDER',
        help=f'folder of images to offer, the first {NUM_EXAMPLES} by name',
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen at; default: %(default)s, this machine alone',
    )
    parser.add_argument(
        '--port', type=int_of_at_least(1), default=7860, help='default: %(default)s'
    )
    parser.add_argument(
        '--max-bytes',
        type=int_of_at_least(1),
        default=UploadLimits.max_bytes,
        help='bytes of an uploaded file; default: %(default)s',
    )
    parser.add_argument(
        '--max-pixels',
        type=int_of_at_least(1),
        default=UploadLimits.max_pixels,
        help='pixels of an uploaded image; default: %(default)s',
    )
    parser.add_argument('--device', help='default: the accelerator, else the CPU')
    add_allow_partial(parser)
    args = parser.parse_args(argv)
    try:
        args.models = pair_up(args.models)
    except ValueError as error:
        parser.error(str(error))
    if args.examples is not None and not args.examples.is_dir():
        parser.error(f'--examples must be a folder, got {args.examples}')
    return args


def pair_up(models: Sequence[str]) -> list[tuple[str, str]]:
    """Returns config and checkpoint of each model, looked up where it is a name.

    Raises:
        ValueError: If a name has no weights, or a config no checkpoint behind it.
    """
    names = list_models()
    pairs = []
    words = iter(models)
    for word in words:
        if word in names:
            pairs.append(model_files(word))
            continue
        checkpoint = next(words, None)
        if checkpoint is None:
            raise ValueError(
                'MODEL must be a name, which is one of '
                f'{", ".join(list_models(trained=True))}, or a config with a '
                f'checkpoint behind it, got {word} alone'
            )
        pairs.append((word, checkpoint))
    return pairs


def import_gradio() -> Any:
    """Imports Gradio, which then sends no statistics.

    Raises:
        ImportError: If it is not installed.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_OFFLINE'] = '1'
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ImportError(
            'the web demo needs Gradio: pip install -r requirements/web.txt'
        ) from error
    return gradio


def load_explorers(args: argparse.Namespace) -> dict[str, Explorer]:
    """Loads the models, by the names of their configs."""
    limits = UploadLimits(args.max_bytes, args.max_pixels)
    explorers: dict[str, Explorer] = {}
    for config, checkpoint in args.models:
        predictor = Predictor(
            load_config(config), checkpoint, args.device, args.allow_partial
        )
        name = Path(config).stem
        if name in explorers:
            # Visitors need not know where files are.
            name = f'{name}, {Path(checkpoint).name}'
        try:
            explorers[name] = Explorer(predictor, limits)
        except ValueError as error:
            raise ValueError(f'{config} with {checkpoint}: {error}') from error
    return explorers


def find_examples(folder: Optional[Path]) -> list[str]:
    """Returns the paths of the images to offer."""
    if folder is None:
        return []
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    return [str(path) for path in paths[:NUM_EXAMPLES]]


def upload_class(gr: Any) -> type:
    """Returns a component for images that hands on the uploaded file as it is.

    Gradio's own would decode an image of any size, and download one from an address.
    """

    def preprocess(self: Any, payload: Any) -> Optional[str]:
        return payload and payload.path

    async def move(self: Any, path: Any) -> Optional[str]:
        if '://' in str(path):
            raise gr.Error('an image must be uploaded, no address is opened')
        return await gr.Image.async_move_resource_to_block_cache(self, path)

    members = dict(
        is_template=True,  # of gr.Image: the browser treats it as one
        preprocess=preprocess,
        async_move_resource_to_block_cache=move,
    )
    # After a class statement Gradio would write a file of types beside this one.
    return ABCMeta.__new__(type(gr.Image), 'Upload', (gr.Image,), members)


def build_page(
    gr: Any, explorers: Mapping[str, Explorer], examples: Sequence[str]
) -> Any:
    """Builds the page.

    Args:
        gr (module): Gradio.
        explorers (Mapping[str, Explorer]): The models by name.
        examples (Sequence[str]): Files of images to offer.

    Returns:
        gradio.Blocks: The page.
    """
    first = next(iter(explorers))

    def settings(name: str) -> tuple[float, int]:
        explorer = explorers[name]
        return round(math.log10(explorer.tol), 2), explorer.max_evals

    def predict(name: str, path: Optional[str], exponent: float, max_evals: int) -> Any:
        if path is None:
            return None, '', NO_IMAGE, None
        try:
            found = explorers[name](path, 10**exponent, max_evals)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        return found.picture, found.legend, f'### {found.summary}', found.figure

    exponent, max_evals = settings(first)
    with gr.Blocks(title='mdeq_mm', delete_cache=(600, 3600)) as page:
        gr.Markdown('# Multiscale Deep Equilibrium Models')
        with gr.Row():
            with gr.Column(scale=2):
                model = gr.Dropdown(list(explorers), value=first, label='Model')
                image = upload_class(gr)(
                    label='Image',
                    sources=['upload', 'clipboard'],
                    buttons=['fullscreen'],
                    height=HEIGHT,
                    elem_classes='whole',
                )
                tol = gr.Slider(
                    math.log10(LEAST_TOL),
                    0,
                    value=exponent,
                    step=0.25,
                    label='Tolerance, as a power of ten',
                    info='The solve stops when the residual is as small as this.',
                    elem_id='tolerance',
                )
                budget = gr.Slider(
                    1,
                    MOST_EVALS,
                    value=max_evals,
                    step=1,
                    label='Budget',
                    info='Evaluations of the cell at most.',
                    elem_id='budget',
                )
            with gr.Column(scale=3):
                summary = gr.Markdown(NO_IMAGE, elem_id='summary')
                with gr.Row():
                    picture = gr.Image(
                        label='Prediction',
                        format='png',
                        interactive=False,
                        buttons=['fullscreen', 'download'],
                        height=HEIGHT,
                        elem_id='prediction',
                        elem_classes='whole',
                    )
                    legend = gr.HTML(elem_id='legend')
                figure = gr.Plot(show_label=False, elem_id='convergence')
        if examples:
            gr.Examples(list(examples), image, label='Examples')
        inputs = [model, image, tol, budget]
        outputs = [picture, legend, summary, figure]
        # While a slider moves, the last place of it counts.
        gr.on(
            [image.change, tol.input, budget.input],
            predict,
            inputs,
            outputs,
            trigger_mode='always_last',
            api_name='predict',
        )
        model.input(settings, model, [tol, budget]).then(predict, inputs, outputs)
    return page


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Serves the page until it is interrupted."""
    args = parse_args(argv)
    gr = import_gradio()
    page = build_page(gr, load_explorers(args), find_examples(args.examples))
    page.queue(max_size=32).launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size=args.max_bytes,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        css=CSS,
    )


if __name__ == '__main__':
    main()
