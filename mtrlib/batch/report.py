"""One static page from the results of a tier: the notebook `results` over them, and the rendered notebooks."""

import re
from importlib.resources import files
from pathlib import Path

import nbformat
import papermill
from jinja2 import Environment
from nbconvert import HTMLExporter

from mtrlib import machine
from mtrlib.data import sealed
from mtrlib.studies import results


def write(folder: Path) -> Path:
    """Write `index.html`, whose path is returned, into a folder of results, and beside each executed notebook its
    rendering as HTML. The page is the notebook `results`, run on the folder, without its code; it refers to files of
    the folder only.

    `folder` holds executed notebooks (`<notebook>.ipynb`), their tables (`<rq>_findings.csv` among them) and figures
    (`<rq>_<figure>.png`), and `machine.json`, as the notebooks write them.
    """
    results.read(folder)  # its fault in one line, not a notebook's
    page = Environment(autoescape=True).from_string(files("mtrlib.batch").joinpath("report.html").read_text("utf-8"))
    rendered = {path.stem: path.with_suffix(".html").name for path in sorted(folder.glob("*.ipynb"))}

    def render(name: str, notebook: nbformat.NotebookNode, title: str, **options: bool) -> None:
        body, _ = HTMLExporter(template_name="basic", **options).from_notebook_node(notebook)
        body = re.sub(r'<a href="(\w+)\.ipynb">(.*?)</a>', linked, body)
        sealed.write(folder / name, page.render(name=Path(name).stem, title=title, body=body).encode())

    def linked(link: re.Match) -> str:
        return f'<a href="{rendered[link[1]]}">{link[2]}</a>' if link[1] in rendered else link[2]

    for stem, name in rendered.items():
        notebook = nbformat.read(folder / f"{stem}.ipynb", as_version=4)
        render(name, notebook, f"{stem}, tier {folder.absolute().name}", embed_images=True)
    beside = folder.absolute().parent / "photos"
    others = beside != folder.absolute() and any(beside.glob("rq*_findings.csv"))  # not any folder of that name
    values = {"folder": str(folder.absolute()), "photographs": str(beside) if others else ""}
    source = machine.root() / "notebooks" / "results.ipynb"
    made = papermill.execute_notebook(source, None, values, cwd=folder, progress_bar=False, log_output=False)
    for number, cell in enumerate(made.cells):
        cell.id = str(number)  # the same page from the same results: papermill gives its own cell another one each time
    hidden = dict.fromkeys(("exclude_input", "exclude_input_prompt", "exclude_output_prompt"), True)
    title = f"Is a multi-task network harder to attack? Results of the tier {folder.absolute().name}"
    render("index.html", made, title, **hidden)
    return folder / "index.html"
