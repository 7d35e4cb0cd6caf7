"""The page of results: every link resolves, every claim and verdict is on it, and a browser finds nothing wrong."""

import html
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nbformat
import oracles
import pandas as pd
import pytest

from mtrlib import batch, claims, figures, machine
from mtrlib.batch import report
from mtrlib.claims import judging, published
from mtrlib.metrics import tables
from mtrlib.studies import results


class Links(HTMLParser):
    """The files that a page refers to."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src")]


def finding(number, where, estimate, told, decides=True, asked="above 4", spread=1, needs=""):
    return (number, where, estimate, estimate - spread, estimate + spread, asked, decides, told, needs)


ROWS = [
    finding("3.1", "pgd: <b>1</b> of <script>", 5, "agrees"),
    finding("3.2", "a: x", 1, "agrees"),
    finding("3.2", "b: x", 5, "disagrees", decides=False),
    finding("3.2", "c, d: x", 2, "disagrees"),
    finding("3.3", "e: x", 1.0, "open", asked="above 1.5 times", needs="3 seeds"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results as the notebooks write them: findings, a figure, an executed notebook; and their page."""
    folder = tmp_path_factory.mktemp("results") / "mine"
    tables.write(folder, "rq3", findings=pd.DataFrame(ROWS, columns=judging.COLUMNS))
    closing = [("3.3", 1, "3 seeds", 0.5, 1.5)]
    tables.write(
        folder, "rq3", closing=pd.DataFrame(closing, columns=["number", "findings", "needs", "PFLOP", "hours"])
    )
    row = {"claim": "3.1 <b>", "definitions": "disagrees", "published behaviour": "agrees", "stands under": "neither"}
    tables.write(folder, "fidelity", verdicts=pd.DataFrame([row]))
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    plt.close(figure)
    figures.write(folder, "rq3", pgd=figure)
    for name in ("rq3_task_weights", "tour"):
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell("1 + 1")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder.parent / "photos").mkdir()  # of photographs, not of results
    assert report.write(folder) == folder / "index.html"
    return folder


def test_every_link_and_image_resolves(folder):
    page = (folder / "index.html").read_text()
    local = [link for link in Links(page).found if not link.startswith(("https://arxiv.org", "data:", "#"))]
    assert {"rq3_pgd.png", "rq3_task_weights.html", "tour.html"} == set(local)
    notebook = (folder / "tour.html").read_text()
    assert notebook.count("<style") == 1, "of nbconvert's own a quarter of a megabyte"
    assert '<div class="highlight' in notebook, "with its code"
    assert all((folder / link).is_file() for link in local)
    inside = [link[1:] for link in Links(page).found if link.startswith("#")]
    assert len(inside) > 6
    assert all(f'id="{html.escape(link)}"' in page for link in inside)
    assert "tour.ipynb" not in page
    assert ">new_dataset</a>" not in page, "a notebook that is not among the results is no link"


def test_the_page_says_what_came_out(folder):
    page = html.unescape((folder / "index.html").read_text())
    assert "discusses, on rooms: 1 confirmed, 1 contradicted, 1 open, 18 not measured." in page
    for number, claim in published.claims().claim.items():
        assert re.search(rf">{re.escape(number)}</td>\s*<td[^>]*>{re.escape(claim)}</td>", page), number
    assert "✗ disagrees: 3.2 " in page
    assert "c, d: x 2.00 (95 % interval 1.00 to 3.00). The claim needs more than 4: against the claim." in page.replace(
        "C,", "c,"
    )
    assert "1 of its 1 verdicts change with all that was published: 3.1 <b> (disagrees, then agrees)." in page
    assert "device cpu" in page or "device cuda" in page
    assert "results.read" not in page, "no code on the page"


def test_text_of_tables_is_text(folder):
    page = (folder / "index.html").read_text()
    assert "<script>:" not in page
    assert "3.1 <b>" not in page


def test_what_decides_comes_first_and_the_rest_is_folded():
    told = results.claims(pd.DataFrame(ROWS, columns=judging.COLUMNS), "RQ3")
    own = told[told.index("3.2 ") : told.index("3.3 ")]
    assert [line[2:6] for line in own.split("\n") if line[:2] == "- "] == ["C, d", "A: x", "B: x"]
    assert own.index("A: x") < own.index("<summary>3.2, further findings: 1</summary>") < own.index("B: x")


@pytest.mark.parametrize(
    ("low", "high", "told", "lead"),
    [
        (0.1, 0.4, "agrees", "**Not reliably: "),
        (1.0, 1.0, "disagrees", "**Yes: "),
        (0.0, 1.0, "open", "**It cannot be told yet: "),
    ],
)
def test_the_answer_is_computed_from_the_finding_on_claim_1_2(low, high, told, lead):
    row = ("1.2", "linf, single: cells less vulnerable", 0.2, low, high, "below 95%", True, told, "")
    answer = results.answer(pd.DataFrame([row], columns=judging.COLUMNS))
    assert answer.startswith(f"{lead}a second task makes a model harder to attack in 20% of the task pairs (")
    assert ") with only the main task attacked.** " in answer
    counted = {"agrees": "1 confirmed", "disagrees": "1 contradicted", "open": "1 open"}[told]
    assert answer.endswith(f"Of 21 claims that the paper makes or discusses, on rooms: {counted}, 20 not measured.")


def test_the_sizes_of_released_results_are_those_of_their_models():
    sizes = results.sizes("results/laptop")
    assert sizes.startswith("seeds 0, 1, 2; encoders resnet18_small")
    assert "; pixels 32, 48; images to train 384, 512" in sizes, "of RQ5 and RQ6, and of the others"
    assert results.sizes("docs") == ""


def test_results_of_one_question_alone_have_what_there_is(tmp_path):
    tables.write(tmp_path, "rq3", findings=pd.DataFrame(ROWS, columns=judging.COLUMNS))
    assert results.closing(tmp_path).empty
    assert results.changed(tmp_path) == "Not asked of these results."
    assert results.pictures(tmp_path, "rq3") == ""
    assert "with published code" not in results.side_by_side(tmp_path)


def test_what_one_kitchen_cannot_say_stands_only_beside_photographs():
    assert not results.limits("")
    assert f"({results.sizes('results/laptop')})" in results.limits("results/laptop")
    assert "\n" not in results.limits("results/laptop")


def test_rooms_and_photographs_stand_side_by_side(tmp_path):
    tables.write(tmp_path / "rooms", "rq3", findings=pd.DataFrame(ROWS, columns=judging.COLUMNS))
    tables.write(tmp_path / "photos", "rq3", findings=pd.DataFrame(ROWS[1:2], columns=judging.COLUMNS))
    table = results.side_by_side(tmp_path / "rooms", tmp_path / "photos").set_index("").loc["3.2"]
    assert (table.rooms, table.photographs) == ("✗ disagrees", "✓ agrees")
    assert table["printed tables say so"] == "✓ yes"


def test_the_readme_shows_the_committed_results():
    """Its answer is that of results/laptop, word for word, and its pictures are there."""
    readme = " ".join((machine.root() / "README.md").read_text().split())
    committed = machine.root() / "results" / "laptop"
    assert results.answer(results.read(committed)) in readme
    assert results.changed(committed) in readme, "what the published code changes"
    for rq in published.OTHERS:
        assert " ".join(claims.answer(claims.released(rq.lower()), rq).split()) in readme
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert all((machine.root() / picture).is_file() for picture in pictures)


def test_changed_verdicts_are_counted(tmp_path):
    columns = ["claim", "definitions", "published behaviour", "stands under"]
    rows = [["3.1 a", "disagrees", "agrees", "x"], ["3.2 b", "agrees", "agrees", "x"], ["3.3 c", "agrees", "?", "x"]]
    tables.write(tmp_path, "fidelity", verdicts=pd.DataFrame(rows, columns=columns))
    told = "2 of its 3 verdicts change with all that was published: "
    assert results.changed(tmp_path) == told + "3.1 a (disagrees, then agrees); 3.3 c (agrees, then ?)."


def test_committed_results_are_whole():
    """Notebooks that ran to their end, each under 3 MB, their figures as PNG and SVG, and the machine."""
    committed = machine.root() / "results" / "laptop"
    notebooks = sorted(committed.glob("*.ipynb"))
    tiny = {"new_method", "constrained_attacks"}  # trained as they run
    assert {path.stem for path in notebooks} | tiny == set(batch.NOTEBOOKS)
    for path in notebooks:
        assert path.stat().st_size < 3e6, path.name
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert code[-1].outputs, path.name
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"], path.name
    figures_ = {path.stem for path in committed.glob("*.png")}
    assert figures_
    assert figures_ == {path.stem for path in committed.glob("*.svg")}
    assert json.loads((committed / "machine.json").read_text())["device"]
    links = Links((committed / "index.html").read_text()).found
    assert all(
        (committed / link).is_file() for link in links if not link.startswith(("https://arxiv.org", "data:", "#"))
    )


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rq\*_findings.csv. Found none in"):
        report.write(tmp_path)


@pytest.mark.skipif(oracles.no_chromium(), reason="no chromium")
def test_a_browser_opens_it_without_complaint(folder):
    """The control, a page with an image that is not there, shows that a complaint would be seen."""
    page = folder / "index.html"
    broken = folder / "broken.html"
    broken.write_text("<img src='missing.png'><script>undefined_function()</script>")
    assert "<h2" in oracles.opened(page)[0]
    assert not oracles.opened(page)[1]
    assert oracles.opened(broken)[1]
    assert not oracles.opened(machine.root() / "results" / "laptop" / "index.html")[1]


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
