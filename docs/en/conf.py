"""Configuration of Sphinx for these pages."""

import re
from pathlib import Path

from sphinx.application import Sphinx

import mdeq_mm

project = 'mdeq_mm'
author = 'The authors of mdeq_mm'
version = release = mdeq_mm.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx.ext.mathjax',
    'sphinx-mathjax-offline',
    'sphinx_copybutton',
]
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True

html_theme = 'furo'
html_title = 'mdeq_mm'
exclude_patterns = ['_build']
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The tables of the model zoo lie next to the configs, where they are looked for on a
# forge. Here they become pages.
HERE = Path(__file__).resolve().parent
ZOO = HERE / 'zoo'
ZOO.mkdir(exist_ok=True)
for path in sorted(HERE.parents[1].glob('configs/*/README.md')):
    page = path.read_text(encoding='utf-8').replace('../../docs/en/', '../')
    # Weights are downloads, found from here.
    page = page.replace('](../../checkpoints/', '](../../../checkpoints/')
    # Configs are no pages: only their names stay.
    page = re.sub(r'\[([^\]]+)\]\([^)/]+\.py\)', r'\1', page)
    (ZOO / f'{path.parent.name}.md').write_text(page, encoding='utf-8')


def link_zoo(app: Sphinx, name: str, source: list[str]) -> None:
    """Lets links to the tables lead to their pages."""
    up = '../' * name.count('/')
    for page in ZOO.glob('*.md'):
        table = f'{up}../../configs/{page.stem}/README.md'
        source[0] = source[0].replace(f']({table}', f']({up}zoo/{page.name}')


def setup(app: Sphinx) -> None:
    """Registers what this project does to its pages."""
    app.connect('source-read', link_zoo)
