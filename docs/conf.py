"""The site of the documentation: `make docs`. Its source is the whole repository: links are those of GitHub."""

import os
import re
import shutil
import sys
from itertools import pairwise
from operator import methodcaller
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mtrlib import __version__  # noqa: E402

project, author, version = "mtrlib", "the mtrlib authors", __version__
copyright = "2026, the mtrlib authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-RESULTS.md",
    "docs/*.md",
    "notebooks/*.ipynb",
]
exclude_patterns = [".*", "data", "results", "runs", "store", "docs/_build"]  # not looked through
html_theme = "furo"
html_title = f"mtrlib {version}"
REPOSITORY = os.environ.get("GITHUB_REPOSITORY")  # "owner/name", where a workflow builds the site
if REPOSITORY:
    html_theme_options = {"source_repository": f"https://github.com/{REPOSITORY}/", "source_branch": "main"}

nb_execution_mode = "off"  # the notebooks as they are committed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_heading_slug_func = methodcaller("replace", " ", "-")  # as in JupyterLab and on the page of results
copybutton_prompt_text = "$ "

default_role = "code"  # `name` in docstrings
autodoc_typehints = "none"  # docstrings say shapes, ranges and units
autodoc_member_order = "bysource"
suppress_warnings = ["ref.python"]  # words in docstrings that name several things


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain English: what reStructuredText would read as a mark is a character, and what stands behind a
    parameter's colon is a sentence on its shape and range, no type."""
    escaped = [re.sub(r"(?<!`)([*|\\]|_(?=\W|$))", r"\\\1", line) for line in lines]
    shown, listed = [], False
    for line, after in pairwise([*escaped, ""]):
        if re.fullmatch("-{3,}", line):
            continue
        if re.fullmatch("-{3,}", after):
            listed = line in ("Parameters", "Attributes")
            shown += [f"**{line}**", ""]
        elif listed and line.strip():
            named = re.match(r"([\w, ]+?) : (.*)", line)
            shown.append(f"- **{named[1]}**: {named[2]}" if named else f"  {line.strip()}")
        else:
            shown.append(line)
    lines[:] = shown


def folders(app, name, content):
    """Links to folders lead to the repository, where it is known; elsewhere they are words."""
    place = Path(app.srcdir, name).parent
    to = f"[\\1](https://github.com/{REPOSITORY}/tree/main/\\2)" if REPOSITORY else r"\1"
    for found in re.finditer(r"\[([^\]]+)\]\(([\w/.-]+)\)", content[0]):
        if (place / found[2]).is_dir():
            content[0] = content[0].replace(found[0], found.expand(to))


def last(app, error):
    """The results lie beside the notebooks that link to their figures, and the site begins at its contents."""
    shutil.copytree(Path(app.srcdir, "results"), Path(app.outdir, "results"), dirs_exist_ok=True)
    Path(app.outdir, "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/index.html">')


def setup(app):
    app.connect("autodoc-process-docstring", plain)
    app.connect("source-read", folders)
    app.connect("build-finished", last)
