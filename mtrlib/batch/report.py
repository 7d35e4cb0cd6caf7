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
from mtrlib.claims.judging import NEVER, numbers, released, verdict
from mtrlib.metrics import tables

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
    """Write `index.html`, whose path is returned, into a folder of results, and beside each executed notebook its
    rendering as HTML. The page refers to files of the folder only.

    `folder` holds executed notebooks (`<notebook>.ipynb`), their tables (`<rq>_verdicts.csv` among them) and figures
    (`<rq>_<figure>.png`), and `machine.json`, as the notebooks write them.
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
            "closing": _closing(folder / f"{rq}_closing.csv"),
            "notebook": next((html for name, html in notebooks.items() if name.startswith(rq)), None),
        }
        for rq, path in verdicts.items()
    ]
    machine, index = folder / "machine.json", folder / "index.html"
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
    sealed.write(index, html.encode())
    return index


def markdown(folder: Path) -> str:
    """The claims of a folder of results as a table in Markdown: number, claim, the first finding with the verdict of
    the claim, and that verdict."""
    lines = ["| | claim | measured: the first finding that decides | verdict |", "|---|---|---|---|"]
    for path in sorted(folder.glob("rq*_findings.csv")):
        findings = released(path)
        for number, claim in published.claims(path.stem.split("_")[0].upper()).claim.items():
            rows = findings[findings.number == number]
            told, measured = verdict(rows), "-"
            for row in rows[rows.decides & (rows.verdict == told)][:1].itertuples():
                needs = f"; needs {row.needs}" if row.needs and row.needs != NEVER else ""
                measured = f"{row.where.split(':')[0]}: {numbers(row)}, asked {row.asked}{needs}"
            lines.append(f"| {number} | {claim} | {measured} | {SIGNS[told]} {told} |")
    return "\n".join(lines)


def changed(folder: Path) -> str:
    """How many verdicts of a folder of results are others under all that was published than under the definitions, and
    which, in one sentence; counted in what the notebook `fidelity` wrote, as the page shows it."""
    rows = _texts(folder / "fidelity_verdicts.csv")
    others = rows[rows["definitions"] != rows["published behaviour"]]
    told = (f"{claim} ({one}, then {two})" for claim, one, two in others[_ENDS[:3]].itertuples(index=False))
    return f"{len(others)} of its {len(rows)} verdicts change with all that was published: {'; '.join(told)}."


def _ladder(folder: Path, notebooks: dict[str, str]) -> dict | None:
    """What the notebook on the published code found, where it was run: the claims under definitions and under all
    published behaviours, its figure and its rendering."""
    path = folder / "fidelity_verdicts.csv"
    if not path.exists():
        return None
    figures = {path.with_suffix(".png").name: CAPTIONS[path.stem]} if path.with_suffix(".png").exists() else {}
    rows = _texts(path)[_ENDS].to_dict("records")
    return {"columns": _ENDS, "rows": rows, "figures": figures, "notebook": notebooks.get("fidelity")}


def _claims(path: Path) -> list[dict]:
    """The claims of one question, with what was measured as a list of findings."""
    rows = _texts(path).rename(columns={"printed tables": "paper"})
    findings = [[part.strip() for part in text.split("; ") if part.strip()] for text in rows.measured]
    where = published.claims().loc[rows.number, "where"].tolist()
    return rows.assign(findings=findings, where=where).to_dict("records")


def _closing(path: Path) -> list[dict]:
    """What would close the open findings of a question, where its notebook wrote that."""
    table = pd.read_csv(path, dtype={"number": str}).fillna("") if path.exists() else pd.DataFrame()
    return table.map(tables.digits).to_dict("records")


def _texts(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _render(path: Path) -> str:
    """The name of the HTML file of an executed notebook, written beside it."""
    exporter = HTMLExporter(embed_images=True)
    exporter.mathjax_url = ""
    html, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    sealed.write(path.with_suffix(".html"), html.encode())
    return path.with_suffix(".html").name
