"""One static page from the results of a tier: the claims with their verdicts, the figures, the rendered notebooks."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment
from nbconvert import HTMLExporter

from mtrlib import sealed
from mtrlib.claims import published
from mtrlib.claims.judging import NOT_DECIDING, WORDS

# What a verdict looks like: a sign beside the colour, for those who cannot tell colours apart.
SIGNS = {"agrees": "✓", "disagrees": "✗", "open": "?", "not measured here": "–"}


_ENDS = ["claim", "definitions", "published behaviour", "stands under"]  # of the table of `rungs.ends`
CAPTIONS = {
    "rq1_table_1a": "What attacks do to each main task (rows) by auxiliary task (columns), measured and as printed in "
    "Table 1 A; diagonal: the single-task model. Colours: times the single-task model of the row.",
    "rq1_errors_under_attack": "Errors of each main task under attack, by auxiliary task; line: the single-task model.",
    "rq2_figure_1": "Adversarial vulnerability as tasks are added to those attacked; every order in grey.",
    "rq3_pgd": "As RQ1's table, for uniform and the paper's task weights, measured and as printed in Table 1 A and B.",
    "fidelity_verdicts": "The verdict on each claim as what the published code does comes in, one change at a time.",
    "rq4_proxies": "The vulnerability of the expensive model over each proxy of it, a point a main and auxiliary task.",
}


def write(folder: Path) -> Path:
    """Write `index.html` into a folder of results, and beside each executed notebook its rendering as HTML.

    Parameters
    ----------
    folder : holds executed notebooks (`<notebook>.ipynb`), their tables (`<rq>_verdicts.csv` among them) and figures
        (`<rq>_<figure>.png`), and `machine.json`, as the notebooks write them.

    Returns
    -------
    The path of the page. It refers to files of the folder only, and to nothing outside it.
    """
    verdicts = {path.stem.split("_")[0]: path for path in sorted(folder.glob("rq*_verdicts.csv"))}
    if not verdicts:
        raise ValueError(f"Parameter folder should hold tables rq*_verdicts.csv. Found none in {folder}.")
    notebooks = {path.stem: _render(path) for path in sorted(folder.glob("*.ipynb"))}
    questions = [
        {
            "name": rq.upper(),
            "claims": _claims(path),
            "figures": {i.name: CAPTIONS.get(i.stem, i.stem) for i in sorted(folder.glob(f"{rq}_*.png"))},
            "notebook": next((html for name, html in notebooks.items() if name.startswith(rq)), None),
        }
        for rq, path in verdicts.items()
    ]
    machine = folder / "machine.json"
    page = Environment(autoescape=True).from_string(files("mtrlib.batch").joinpath("report.html").read_text("utf-8"))
    html = page.render(
        tier=folder.name,
        machine=json.loads(machine.read_text()) if machine.exists() else {},
        counts={sign: sum(claim["verdict"] == sign for q in questions for claim in q["claims"]) for sign in SIGNS},
        signs=SIGNS,
        questions=questions,
        ladder=_ladder(folder, notebooks),
        others={name: html for name, html in notebooks.items() if not name.startswith(("rq", "fidelity"))},
    )
    index = folder / "index.html"
    sealed.write(index, html.encode())
    return index


def markdown(folder: Path) -> str:
    """The claims of a folder of results as a table in Markdown: number, claim, the first finding with the verdict of
    the claim, and that verdict."""
    lines = ["| | claim | measured: the first finding that decides | verdict |", "|---|---|---|---|"]
    for path in sorted(folder.glob("rq*_verdicts.csv")):
        for claim in _claims(path):
            findings = claim["findings"] or ["-"]
            deciding = [f for f in findings if f": {WORDS.get(claim['verdict'])}" in f and not f.endswith(NOT_DECIDING)]
            first = (deciding or findings)[0]
            more = f" (1 of {len(findings)} findings)" if len(findings) > 1 else ""
            verdict = f"{SIGNS[claim['verdict']]} {claim['verdict']}"
            lines.append(f"| {claim['number']} | {claim['claim']} | {first}{more} | {verdict} |")
    return "\n".join(lines)


def changed(folder: Path) -> str:
    """How many verdicts of a folder of results are others under all that was published than under the definitions, and
    which, in one sentence; counted in what the notebook `fidelity` wrote, as the page shows it."""
    rows = pd.read_csv(folder / "fidelity_verdicts.csv", dtype=str, keep_default_na=False)
    others = rows[rows["definitions"] != rows["published behaviour"]]
    told = (f"{claim} ({one}, then {two})" for claim, one, two in others[_ENDS[:3]].itertuples(index=False))
    return f"{len(others)} of its {len(rows)} verdicts change with all that was published: {'; '.join(told)}."


def _ladder(folder: Path, notebooks: dict[str, str]) -> dict | None:
    """What the notebook on the published code found, where it was run: the claims under definitions and under all
    published behaviours, its figure and its rendering."""
    path = folder / "fidelity_verdicts.csv"
    if not path.exists():
        return None
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)[_ENDS].to_dict("records")
    image = "fidelity_verdicts"
    figure = {f"{image}.png": CAPTIONS[image]} if (folder / f"{image}.png").exists() else {}
    return {"columns": _ENDS, "rows": rows, "figures": figure, "notebook": notebooks.get("fidelity")}


def _claims(path: Path) -> list[dict]:
    """The claims of one question, with what was measured as a list of findings."""
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    known = published.claims()
    for row in rows:
        row["findings"] = [part.strip() for part in row["measured"].split("; ") if part.strip()]
        row["where"] = known.loc[row["number"], "where"]
        row["paper"] = row["printed tables"]
    return rows


def _render(path: Path) -> str:
    """The name of the HTML file of an executed notebook, written beside it."""
    exporter = HTMLExporter(embed_images=True)
    exporter.mathjax_url = ""
    html, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    sealed.write(path.with_suffix(".html"), html.encode())
    return path.with_suffix(".html").name
