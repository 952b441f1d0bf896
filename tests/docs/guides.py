"""The pages of the documents, and the blocks in them."""

import re

import pytest

from ..isolation import TOOLS

ROOT = TOOLS.parent
ENGLISH = [
    page for page in sorted((ROOT / 'docs/en').rglob('*.md')) if 'zoo' not in page.parts
]
CHINESE = sorted((ROOT / 'docs/zh_cn').glob('*.md'))
PAGES = [ROOT / 'README.md', *ENGLISH, *CHINESE]
# What the pages of the reports show was run once, with other models.
GUIDES = [page for page in PAGES if page.parent.name != 'reports']
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)


def blocks(language, pages=PAGES):
    """Returns the texts of all blocks in a language, as parameters of a test."""
    return [
        pytest.param(text, id=f'{page.relative_to(ROOT)}:{number}')
        for page in pages
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text()))
        if kind == language
    ]
