"""The page of results: every link resolves, every claim and verdict is on it, and a browser finds nothing wrong."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from mtrlib import batch, figures, machine
from mtrlib.batch import report
from mtrlib.claims import judging, published
from mtrlib.metrics import tables
from mtrlib.studies.fidelity import rungs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Links(HTMLParser):
    """The files that a page refers to."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src")]


@pytest.fixture
def folder(tmp_path):
    """Results as the notebooks write them: a table of verdicts, a figure, an executed notebook."""
    claims = published.claims("RQ3")[["claim", "printed_evidence"]].rename(
        columns={"printed_evidence": "printed tables"}
    )
    rows = claims.assign(measured=["pgd: 90% [80%, 95%]; apgd: <b>1</b> [0, 2]", "", "x: 1 [0, 2]", "", "", ""])
    rows["verdict"] = [*report.SIGNS, "open", "open"]
    tables.write(tmp_path, "rq3", verdicts=rows.reset_index(names="number"))
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    plt.close(figure)
    figures.write(tmp_path, "rq3", pgd=figure)
    for name in ("rq3_task_weights", "tour"):
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell("1 + 1")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def test_every_link_and_image_resolves(folder):
    page = report.write(folder).read_text()
    local = [link for link in Links(page).found if not link.startswith(("https://arxiv.org", "data:", "#"))]
    assert {"rq3_pgd.png", "rq3_task_weights.html", "tour.html"} <= set(local)
    assert all((folder / link).is_file() for link in local)


def test_claims_stand_with_their_verdicts(folder):
    page = report.write(folder).read_text()
    for number, claim in published.claims("RQ3").claim.items():
        assert f"{number} {claim}" in page
    for verdict, sign in report.SIGNS.items():
        assert f"{sign} {verdict}: {3 if verdict == 'open' else 1}" in page
        assert f".{verdict.split()[0]} .verdict {{" in page, "each has its colour"
    assert "<li>pgd: 90% [80%, 95%]</li>" in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page, "text of tables is text"
    assert "device cpu" in page or "device cuda" in page


def test_the_finding_that_is_shown_is_one_that_decides(tmp_path):
    about = [("a: x", 1, "agrees", True), ("b: x", 5, "disagrees", False), ("c, d: x", 2, "disagrees", True)]
    rows = [("3.1", where, n, n - 1, n + 1, "above 4", decides, told, "") for where, n, told, decides in about]
    rows.append(("3.2", "e: x", 1.0, 0.0, 2.0, "above 1.5 times", True, "open", "3 seeds"))
    tables.write(tmp_path, "rq3", findings=pd.DataFrame(rows, columns=judging.COLUMNS))
    shown = {line.split(" | ")[0][2:]: line for line in report.markdown(tmp_path).split("\n")}
    assert shown["3.1"].endswith("| c, d: 2.00 [1.00, 3.00], asked above 4 | ✗ disagrees |")
    assert shown["3.2"].endswith("| e: 1.00 [0, 2.00], asked above 1.5 times; needs 3 seeds | ? open |")
    assert shown["3.3"].endswith("| - | – not measured here |")


def test_the_readme_shows_the_committed_results():
    """Its table of claims is the one of results/laptop, word for word, and its pictures are there."""
    readme = (machine.root() / "README.md").read_text()
    results = machine.root() / "results" / "laptop"
    table = report.markdown(results)
    assert table.count("\n") == 1 + len(published.claims()), "every claim of the paper"
    assert table in readme
    assert report.changed(results) in " ".join(readme.split()), "what the published code changes"
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert len(pictures) >= 2
    assert all((machine.root() / picture).is_file() for picture in pictures)


def test_changed_verdicts_are_counted(tmp_path):
    columns = ["claim", "definitions", "published behaviour", "stands under"]
    rows = [["3.1 a", "disagrees", "agrees", "x"], ["3.2 b", "agrees", "agrees", "x"], ["3.3 c", "agrees", "?", "x"]]
    tables.write(tmp_path, "fidelity", verdicts=pd.DataFrame(rows, columns=columns))
    told = "2 of its 3 verdicts change with all that was published: "
    assert report.changed(tmp_path) == told + "3.1 a (disagrees, then agrees); 3.3 c (agrees, then ?)."


def test_committed_results_are_whole():
    """Notebooks that ran to their end, each under 3 MB, their figures as PNG and SVG, and the machine."""
    results = machine.root() / "results" / "laptop"
    notebooks = sorted(results.glob("*.ipynb"))
    assert {path.stem for path in notebooks} == set(batch.NOTEBOOKS)
    for path in notebooks:
        assert path.stat().st_size < 3e6, path.name
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert code[-1].outputs, path.name
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"], path.name
    figures_ = {path.stem for path in results.glob("*.png")}
    assert figures_
    assert figures_ == {path.stem for path in results.glob("*.svg")}
    assert json.loads((results / "machine.json").read_text())["device"]
    links = Links((results / "index.html").read_text()).found
    assert all((results / link).is_file() for link in links if not link.startswith(("https://arxiv.org", "data:", "#")))


def test_what_the_published_code_changes_is_on_the_page(folder):
    assert "published code changes" not in report.write(folder).read_text(), "where that notebook was not run"
    row = {"claim": "3.1 <b>", "definitions": "disagrees", "published behaviour": "agrees"}
    row["stands under"] = "published behaviour only"
    tables.write(folder, "fidelity", verdicts=pd.DataFrame([row]))
    page = report.write(folder).read_text()
    assert "<td>3.1 &lt;b&gt;</td><td>disagrees</td><td>agrees</td><td>published behaviour only</td>" in page
    committed = (machine.root() / "results" / "laptop" / "index.html").read_text()
    assert committed.partition('id="FIDELITY"')[2].count("<td>") == 4 * len(rungs.CLAIMS)
    assert {"fidelity_verdicts.png", "fidelity.html"} <= set(Links(committed).found)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rq\*_verdicts.csv. Found none in"):
        report.write(tmp_path)


@pytest.mark.skipif(CHROMIUM is None and os.environ.get("MTRLIB_CHROMIUM") != "required", reason="no chromium")
def test_a_browser_opens_it_without_complaint(folder):
    """The control, a page with an image that is not there, shows that a complaint would be seen."""
    assert CHROMIUM, "MTRLIB_CHROMIUM=required, and there is no chromium"
    page = report.write(folder)
    broken = folder / "broken.html"
    broken.write_text("<img src='missing.png'><script>undefined_function()</script>")
    assert "<h2" in _opened(page)[0]
    assert not _opened(page)[1]
    assert _opened(broken)[1]
    assert not _opened(machine.root() / "results" / "laptop" / "index.html")[1]


def _opened(page) -> tuple[str, list[str]]:
    """The document as the browser has it, and what its console says."""
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --enable-logging=stderr --dump-dom"
    done = subprocess.run([CHROMIUM, *options.split(), page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_figures_are_written_as_the_same_bytes_again(tmp_path):
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    plt.close(figure)
    figures.write(tmp_path / "one", "rq1", line=figure)
    figures.write(tmp_path / "two", "rq1", line=figure)
    for kind in ("png", "svg"):
        one, two = (tmp_path / name / f"rq1_line.{kind}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert len(one.read_bytes()) > 1000


def test_a_table_says_what_it_was_computed_by(tmp_path):
    tables.write(tmp_path, "rq1", one=pd.DataFrame({"a": [1]}))
    assert "commit" in (tmp_path / "machine.json").read_text()
