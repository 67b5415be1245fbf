"""The files of the project and their syntax trees."""

import ast
import functools
from pathlib import Path

import resnetkit

PACKAGE = Path(resnetkit.__file__).parent
ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(("resnetkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@functools.cache
def parse_file(path):
    return ast.parse(path.read_text())
