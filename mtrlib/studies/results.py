"""What came out: the verdicts of a folder of results, side by side, in words and with their figures."""

import html
import json
import os
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pandas as pd

from mtrlib import machine
from mtrlib.claims import judging, printed, published
from mtrlib.claims.judging import AGREES, DISAGREES, NOT_MEASURED, OPEN
from mtrlib.specs import Place, Spec
from mtrlib.store.released import Released

SIGNS = {AGREES: "✓", DISAGREES: "✗", OPEN: "?", NOT_MEASURED: "–"}  # for those who cannot tell colours apart
SHOWN = 3  # findings of a claim, at most, that are not folded away
_COUNTED = {AGREES: "confirmed", DISAGREES: "contradicted", OPEN: "open", NOT_MEASURED: "not measured"}
_LEADS = {AGREES: "Not reliably", DISAGREES: "Yes", OPEN: "It cannot be told yet"}


class Results(Spec):
    """folder : of results, as the notebooks of a tier write it; photographs : another one, of photographs, or ""."""

    folder: Place
    photographs: Place


def read(folder: str | Path) -> pd.DataFrame:
    """All findings of a folder of results (`<rq>_findings.csv`), as `claims.findings` gives them. Empty for "";
    ValueError for a folder that has none."""
    paths = sorted(machine.place(folder).glob("rq*_findings.csv")) if folder else []
    if folder and not paths:
        raise ValueError(f"A folder of results should hold tables rq*_findings.csv. Found none in {folder}.")
    return pd.concat([judging.released(path) for path in paths]) if paths else judging.frame([])


def answer(findings: pd.DataFrame, data: str = "rooms") -> str:
    """The answer to whether a multi-task network is harder to attack, by the findings that decide claim 1.2, and how
    many claims stand."""
    told = verdicts(findings)
    counts = [f"{(told == verdict).sum()} {word}" for verdict, word in _COUNTED.items() if (told == verdict).any()]
    counted = f"Of {len(told)} claims that the paper makes or discusses, on {data}: {', '.join(counts)}."
    main = findings[(findings.number == "1.2") & findings.decides]
    if main.empty:
        return counted
    ways = {"single": "only the main task", "joint": "all tasks"}
    parts = []
    for row in main.itertuples():
        way = row.where.split(":")[0].split(", ")[-1]
        parts.append("in {} of the task pairs{}".format(*judging.numbers(row)) + f" with {ways.get(way, way)} attacked")
    lead = _LEADS[judging.verdict(main)]
    return f"**{lead}: a second task makes a model harder to attack {', '.join(parts)}.** {counted}"


def verdicts(findings: pd.DataFrame, rq: str | None = None) -> pd.Series:
    """The verdict on each claim of the paper, by number, or of one question."""
    numbers = published.claims(rq).sort_index().index
    return pd.Series({n: judging.verdict(findings[findings.number == n]) for n in numbers})


def side_by_side(results: str | Path, photographs: str | Path = "") -> pd.DataFrame:
    """Every claim with its verdicts: on rooms, on photographs (where there are results), by the printed tables, and
    under all that was published (notebook `fidelity`, where it was run). Claims that are not the paper's stand below
    its own where they were measured on rooms."""
    found = read(results)
    questions = [None, *(rq for rq in published.OTHERS if found.number.isin(published.claims(rq).index).any())]

    def told(findings: pd.DataFrame) -> pd.Series:
        return pd.concat([verdicts(findings, rq) for rq in questions]).map(signed)

    columns = {"rooms": told(found)}
    if photographs:
        columns["photographs"] = told(read(photographs))
    words = {printed.FOLLOWS: "✓ yes", printed.DOES_NOT: "✗ no", printed.NO_TABLE: ""}
    columns["printed tables say so"] = printed.follows().set_index("number").verdict.replace(words)
    path = machine.place(results) / "fidelity_verdicts.csv"
    if path.exists():
        rungs = pd.read_csv(path, dtype=str, keep_default_na=False)
        of_claim = rungs["published behaviour"].map(signed).groupby(rungs.claim.str.split().str[0])
        columns["with published code"] = of_claim.agg(lambda each: ", ".join(dict.fromkeys(each)))
    claims = pd.concat([published.claims(rq) for rq in questions]).sort_index()
    table = pd.DataFrame({"claim": claims.claim, **columns}).astype(object)
    return table.where(table.notna(), "").rename_axis("").reset_index()


def claims(findings: pd.DataFrame, rq: str) -> str:
    """The claims of a question in Markdown: verdict, and what was found, in words; what decides first."""
    lines = []
    for number, claim in published.claims(rq).sort_index().iterrows():
        rows = findings[findings.number == number]
        told = judging.verdict(rows)
        first = rows.decides & (rows.verdict == told)
        said = [f"- {html.escape(line, quote=False)}" for line in judging.lines(pd.concat([rows[first], rows[~first]]))]
        shown = min(SHOWN, max(int(rows.decides.sum()), 1))
        lines += [f"**{signed(told)}: {number} {claim.claim}** ({claim['where']})", "", *said[:shown], ""]
        if rest := said[shown:]:
            lines += [
                f"<details><summary>{number}, further findings: {len(rest)}</summary>",
                "",
                *rest,
                "",
                "</details>",
                "",
            ]
    return "\n".join(lines)


def pictures(folder: str | Path, name: str) -> str:
    """The figures of a notebook, such as "rq1", in Markdown: those of captions.csv that are there, each a link to its
    full size."""
    with (files("mtrlib.studies") / "captions.csv").open() as file:
        captions = pd.read_csv(file).set_index("figure").caption
    lines = []
    for figure, caption in captions[captions.index.str.startswith(f"{name}_")].items():
        path = machine.place(folder) / f"{figure}.png"
        link = Path(os.path.relpath(path)).as_posix()
        lines += [f"[![{caption}]({link})]({link})", "", f"*{caption}*", ""] if path.exists() else []
    return "\n".join(lines)


def closing(folder: str | Path) -> pd.DataFrame:
    """What would close the open claims, of all questions, as `cost.closing` wrote it."""
    paths = sorted(machine.place(folder).glob("rq*_closing.csv"))
    tables = [pd.read_csv(path, dtype={"number": str}) for path in paths]
    return pd.concat(tables, ignore_index=True).fillna("") if tables else pd.DataFrame()


def sizes(folder: str | Path) -> str:
    """What the models of released results are, in a line; "" where no errors were released."""
    path = machine.place(folder) / "errors.parquet"
    specs = [record["spec"] for record in Released(path).records()] if path.exists() else []
    few = len(specs) / 10  # a model or two are of another kind, such as those that attacks are taken from
    about = {
        "seeds": [spec["seed"] for spec in specs],
        "encoders": [spec["encoder"] for spec in specs],
        "pixels": [spec["data"]["size"] for spec in specs],
        "images to train": [spec["images"] for spec in specs],
    }
    counts = {
        name: sorted(v for v, number in Counter(values).items() if number > few) for name, values in about.items()
    }
    return "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in counts.items() if values)


def limits(photographs: str | Path) -> str:
    """What results on the tier photos cannot say, in Markdown; "" without them."""
    return (
        photographs
        and f"""*Photographs* are one video of one kitchen by one depth camera ({sizes(photographs)}). What is \
confirmed there holds for this room: others may answer otherwise. Those to test come later in the same video, \
neighbours look alike, and intervals take them for independent: they are narrower than they ought to be. Labels are \
derived from the sensor's depth, which has holes at edges and on shining things, where nothing is counted, and noise, \
which normals and occlusion edges inherit; colour and depth may lie some pixels apart. There are no classes: claims \
about s are not asked here, RQ3 asks of one pair of tasks, and RQ5 and RQ6 were run on rooms alone."""
    )


def made_by(folder: str | Path) -> str:
    """What the results were computed by, in a line."""
    path = machine.place(folder) / "machine.json"
    return (
        " · ".join(f"{name} {value}" for name, value in json.loads(path.read_text()).items()) if path.exists() else ""
    )


def signed(verdict: str) -> str:
    """A verdict behind its sign."""
    return f"{SIGNS[verdict]} {verdict}" if verdict in SIGNS else verdict


def changed(folder: str | Path) -> str:
    """How many verdicts of a folder of results are others under all that was published than under the definitions, and
    which, in one sentence."""
    path = machine.place(folder) / "fidelity_verdicts.csv"
    if not path.exists():
        return "Not asked of these results."
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    others = rows[rows["definitions"] != rows["published behaviour"]]
    columns = others[["claim", "definitions", "published behaviour"]]
    told = (f"{claim} ({one}, then {two})" for claim, one, two in columns.itertuples(index=False))
    return f"{len(others)} of its {len(rows)} verdicts change with all that was published: {'; '.join(told)}."
