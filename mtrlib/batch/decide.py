"""`python -m mtrlib decide`: seeds are added where they decide most, until the hours are spent.

Who looks again and again until a test says yes will see one say yes. So the looks are fixed beforehand, at 3, 5, 8 and
12 seeds of a question, each has its part of the level (Bonferroni: a fourth of 5 %), and the first look that decides a
claim counts.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import yaml

from mtrlib import machine, studies
from mtrlib.batch import cost, tier
from mtrlib.claims import NOT_MEASURED, OPEN, findings
from mtrlib.claims.judging import verdict
from mtrlib.studies import predictions, rq2
from mtrlib.tasks import canonical

LOOKS = (3, 5, 8, 12)
LEVEL = 0.05 / len(LOOKS)
COLUMNS = ["notebook", "seeds", "hours estimated", "hours", "decided", "open"]


def decide(
    values: dict[str, dict], hours: float, precision: str = "auto", engine: Callable[..., None] | None = None
) -> pd.DataFrame:
    """Add seeds to the research questions of a tier, look by look, first where the next look decides most an hour.

    Parameters
    ----------
    values : parameters by notebook, as `batch.read` gives them. Their own seeds come first, then the lowest others.
    hours : to spend on this machine; a look that is estimated to take more than what is left is not begun.
    engine : trains and attacks models, of needs, the name of the notebook and keys; the batch engine by default.

    Returns
    -------
    One row a look, in their order: notebook, seeds, hours estimated and hours (taken; with those of the models that
    were trained for want of a rate), decided (claims with the verdicts that this look gave them) and open (claims with
    what their findings need).
    """
    engine = engine or _snakemake
    taken = {name: 0 for name in values if re.match(r"rq\d", name)}
    left: dict[str, pd.DataFrame] = {}  # findings that the last look left open
    verdicts: dict[str, str] = {}
    rows, begun = [], time.monotonic()
    while True:
        looks = []
        for name, number in taken.items():
            seeds = LOOKS[min(number, len(LOOKS) - 1)]
            alone = [re.fullmatch(r"(\d+) seeds", text) for text in left[name].needs] if name in left else []
            closed = sum(int(found[1]) <= seeds for found in alone if found) if name in left else np.inf
            if number < len(LOOKS) and closed:
                own = values[name]["seeds"]
                others = (seed for seed in range(seeds + len(own)) if seed not in own)
                needs = tier.needs({name: {**values[name], "seeds": [*own, *others][:seeds]}}, precision)
                looks.append((closed, name, needs, _hours(needs, name, engine)))
        spent = (time.monotonic() - begun) / 3600
        looks = [look for look in looks if look[-1] <= max(hours - spent, 0.0)]
        if not looks:
            return pd.DataFrame(rows, columns=COLUMNS)
        _, name, needs, estimated = max(looks, key=lambda look: look[0] / max(look[-1], 1e-6))
        if keys := _missing(needs):
            engine(needs, name, keys)
        table = _findings(needs, name)
        told = {n: verdict(table[table.number == n]) for n in dict.fromkeys(table.number) if n not in verdicts}
        new = {n: word for n, word in told.items() if word not in (OPEN, NOT_MEASURED)}
        verdicts |= new
        left[name] = table[(table.verdict == OPEN) & table.decides & ~table.number.isin(verdicts)]
        wanted = left[name].groupby("number", sort=False).needs.agg(lambda texts: ", ".join(dict.fromkeys(texts)))
        row = [name, LOOKS[taken[name]], estimated, (time.monotonic() - begun) / 3600 - spent]
        rows.append([*row, *("; ".join(f"{n} {text}" for n, text in of.items()) for of in (new, wanted))])
        taken[name] += 1


def _missing(needs: tier.Needs) -> list[str]:
    """The keys of models that are not attacked yet: released errors need no model."""
    return [key for key in needs.models if tier.unattacked(needs, [key])]


def _hours(needs: tier.Needs, name: str, engine: Callable[..., None]) -> float:
    """What a look takes. Where the store has no rate yet, its first model is trained and attacked for one."""
    for _ in range(2):
        keys = _missing(needs)
        hours = cost.estimate(needs).set_index("key").seconds[keys].sum(skipna=False) / 3600
        if not keys or np.isfinite(hours):
            break
        engine(needs, name, keys[:1])
    return float(hours)


def _findings(needs: tier.Needs, name: str) -> pd.DataFrame:
    p, cells = needs.parameters[name], tier.NOTEBOOKS[name][1](needs.parameters[name])
    errors = studies.run(needs.store, cells)
    more = {}
    if isinstance(p, rq2.RQ2):
        spec = p.model(canonical(p.tasks), p.seeds[0])
        one = errors[(errors.panel != "chains") & (errors.seed == p.seeds[0])]
        gradients = rq2.gradients(needs.store, spec, rq2.subsets(p.tasks), p.gradient_images)
        more = {name: of(one, gradients, spec.tasks) for name, of in predictions.OF_GRADIENTS.items()}
    return findings(name, errors, LEVEL, **more)


def _snakemake(needs: tier.Needs, name: str, keys: Iterable[str]) -> None:
    """Train and attack models by the batch engine; a job a model."""
    folder = needs.store.path / "batch" / "decide"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(needs.parameters[name].model_dump()))
    marks = [str(job.mark) for job in tier.jobs(needs)["evaluated"] if set(job.of) & set(keys)]
    config = [f"params={folder}", f"notebooks={name}", f"precision={needs.parameters[name].precision}"]
    profile = machine.root() / "workflow/profiles/local"
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", profile, *marks, "--config", *config]
    if subprocess.run(command, cwd=machine.root(), check=False).returncode:
        told = "what it told stands above. Run the same command again."
        raise ValueError(f"The batch engine did not finish {name}; {told}")
