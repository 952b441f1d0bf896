"""One page about the equilibrium of an image, which needs no other file."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Union

import cv2
import numpy as np

from ..deq import Solution
from .examination import Examination
from .pictures import (
    picture_adjoint,
    picture_features,
    picture_residuals,
    picture_slow_places,
)

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1200px; margin: 2em auto;
       padding: 0 1em; }
h2 { margin: 1.6em 0 0.3em; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3em 1.2em 0.3em 0; text-align: left;
         vertical-align: top; }
th { font-weight: normal; color: #555; min-width: 15em; }
img { max-width: 100%; }
.predictions { display: flex; flex-wrap: wrap; gap: 1.5em; }
.predictions figure { margin: 0; }
.predictions img { min-width: 256px; max-width: 480px; image-rendering: pixelated; }
.chip { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em;
        border: 1px solid #888; }
</style>
</head>
<body>
<h1>$title</h1>
<table>$facts</table>
$sections
</body>
</html>
""")
SECTION = Template('<h2>$heading</h2>\n<p>$text</p>\n$content\n')
# Heading of each picture, and how to read it.
HEADINGS = {
    'prediction': 'Prediction',
    'residuals': 'Residual against evaluations',
    'slow_places': 'Where it converges slowly',
    'features': 'Features on the way',
    'adjoint': 'Adjoint solve',
}
TEXTS = dict(
    prediction='What the model makes of the image.',
    residuals='A pale line is the residual of each evaluation, the solid line the '
    'smallest one so far. A branch whose line stays above the others holds the solve '
    'up. A line that stops falling above the tolerance needs another solver, or '
    'regularisation in training.',
    slow_places='The residual at each place of the finest feature map when the solve '
    'ends. Bright places are the farthest from the equilibrium.',
    features='What the evaluations return, one row per branch. The colours are the '
    'first three principal components of the features where the solves end. Features '
    'whose colours no longer change have converged.',
    adjoint='The solve of the backward pass at this equilibrium, for a gradient of '
    'random direction, with the solver of the gradient.',
)


@dataclass(frozen=True, eq=False)
class ReportCase:
    """One column of a report: a model with a solver, and what it does to the image.

    Attributes:
        examination (Examination): How the solve went.
        prediction (np.ndarray): The image with its prediction, RGB, uint8,
            ``(H, W, 3)``.
        shares (Sequence[tuple[str, float]]): Share of each class, or its score, the
            largest first.
        colours (Mapping[str, Sequence[int]]): RGB colour of the classes of a segmentor,
            by name; empty for a classifier.
    """

    examination: Examination
    prediction: np.ndarray
    shares: Sequence[tuple[str, float]]
    colours: Mapping[str, Sequence[int]]


def write_report(
    folder: Union[str, Path], cases: Mapping[str, ReportCase], title: str
) -> list[Path]:
    """Writes ``report.html``, which holds its pictures itself, and the pictures.

    All files are made before the first one appears in the folder, and the page is the
    last one. Other files there stay.

    Args:
        folder (str or Path): The folder, which is made.
        cases (Mapping[str, ReportCase]): What to show, by name, at least one case.
        title (str): Title of the page.

    Returns:
        list[Path]: The files.
    """
    folder = Path(folder)
    solves = {name: case.examination for name, case in cases.items()}
    drawn = {
        'residuals': picture_residuals(solves),
        'slow_places': picture_slow_places(solves),
        'features': picture_features(solves),
        'adjoint': picture_adjoint(solves),
    }
    pictures = {name: _png(image) for name, image in drawn.items() if image is not None}
    predictions = [_png(case.prediction) for case in cases.values()]
    contents = {f'{name}.png': data for name, data in pictures.items()}
    for number, data in enumerate(predictions, start=1):
        contents[f'prediction_{number}.png'] = data
    page = _page(cases, title, pictures, predictions)
    contents['report.html'] = page.encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.writing-', dir=folder) as temporary:
        for name, data in contents.items():
            (Path(temporary) / name).write_bytes(data)
        for name in contents:
            (Path(temporary) / name).replace(folder / name)
    return [folder / name for name in contents]


def css_colour(colour: Sequence[int]) -> str:
    """Writes an RGB colour, 0 to 255, for a style of a page.

    Colours come from checkpoints, so nothing but numbers gets into the page.

    Raises:
        ValueError: If a part of it is no number.
    """
    red, green, blue = map(int, colour)
    return f'rgb({red}, {green}, {blue})'


def _page(
    cases: Mapping[str, ReportCase],
    title: str,
    pictures: Mapping[str, bytes],
    predictions: Sequence[bytes],
) -> str:
    contents = {name: _img(data, name) for name, data in pictures.items()}
    figures = [
        f'<figure>{_img(data, name)}<figcaption>{escape(name)}{_classes(case)}'
        '</figcaption></figure>'
        for data, (name, case) in zip(predictions, cases.items())
    ]
    contents['prediction'] = f'<div class="predictions">{"".join(figures)}</div>'
    sections = [
        SECTION.substitute(heading=heading, text=TEXTS[name], content=contents[name])
        for name, heading in HEADINGS.items()
        if name in contents
    ]
    return PAGE.substitute(
        title=escape(title), facts=_facts(cases), sections='\n'.join(sections)
    )


def _classes(case: ReportCase) -> str:
    """Returns the list of the classes of a prediction, with their colours."""
    rows = []
    for name, share in case.shares:
        chip = ''
        if name in case.colours:
            colour = css_colour(case.colours[name])
            chip = f'<span class="chip" style="background: {colour}"></span>'
        rows.append(f'<br>{chip}{share:.1%} {escape(name)}')
    return ''.join(rows)


def _facts(cases: Mapping[str, ReportCase]) -> str:
    """Returns the rows of the table of numbers, one column per case."""
    columns = [_numbers(case.examination) for case in cases.values()]
    rows = [('', *cases)]
    rows += [(key, *(column[key] for column in columns)) for key in columns[0]]
    texts = [[escape(cell) for cell in row] for row in rows]
    return '\n'.join(
        f'<tr><th>{key}</th><td>{"</td><td>".join(cells)}</td></tr>'
        for key, *cells in texts
    )


def _numbers(solve: Examination) -> dict[str, str]:
    solver = solve.mode.solver
    last = solve.traces.cummin(0).values[-1, 1:]
    radius = 'not computed' if solve.radius is None else f'{solve.radius:.3g}'
    adjoint = 'none: the gradient solves no adjoint system'
    if solve.adjoint is not None:
        adjoint = _outcome(solve.adjoint, 'vector-Jacobian products')
    return {
        'solver': type(solver).__name__,
        'budget and tolerance': f'{solver.max_evals} evaluations, {solver.tol:g} '
        f'({solver.stop_mode})',
        'outcome': _outcome(solve.solution, 'evaluations'),
        'branch with the largest residual': solve.branches[int(last.argmax())],
        'numbers in the state': f'{solve.solution.state.shape[1]:,}',
        'spectral radius, below 1 where plain iteration converges': radius,
        'adjoint solve': adjoint,
    }


def _outcome(solution: Solution, unit: str) -> str:
    """Returns in words how a solve of one sample ended."""
    (message,) = solution.messages
    number, residual = int(solution.n_evals), float(solution.residual)
    return f'{number} {unit}, residual {residual:.2g}; {message}'


def _png(image: np.ndarray) -> bytes:
    """Returns the file of an RGB image."""
    return bytes(cv2.imencode('.png', np.ascontiguousarray(image[..., ::-1]))[1])


def _img(data: bytes, name: str) -> str:
    """Returns an image of a page that holds it itself."""
    text = base64.b64encode(data).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{text}">'
