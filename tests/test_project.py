"""What surrounds the package: its words agree with its files, and its versions with each other."""

import json
import re
import tomllib
from itertools import pairwise

import pytest
import yaml

import mtrlib
from mtrlib import batch, machine
from mtrlib.claims import published

ROOT = machine.root()
PAGES = [path for place in ("*.md", "docs/*.md", ".github/*.md") for path in sorted(ROOT.glob(place))]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def pin(name: str) -> str:
    return re.search(rf"^{name}==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == mtrlib.__version__
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert mtrlib.__version__ == versions[1], "what is released has a heading with its date"


def test_the_hooks_check_with_the_ruff_that_the_tests_use():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hook["rev"] == f"v{pin('ruff')}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_gives_commands_that_there_are(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    commands = "\n".join(step.get("run", "") for job in jobs for step in job["steps"])
    assert commands.strip()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", commands)) <= targets


def test_the_tests_run_on_every_python_from_the_oldest_allowed_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (workflow,) = (path for path in WORKFLOWS if path.stem == "tests")
    pythons = yaml.safe_load(workflow.read_text())["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={pythons[0]}"
    minors = [int(version.removeprefix("3.")) for version in pythons]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_containers_and_binder_install_the_pinned_versions():
    environment = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert environment["containerEnv"]["PIP_EXTRA_INDEX_URL"] == "${localEnv:PIP_EXTRA_INDEX_URL}"
    assert environment["postCreateCommand"] == "make .venv/installed"
    docker = (ROOT / "Dockerfile").read_text()
    assert docker.index("ARG PIP_EXTRA_INDEX_URL") < docker.index("RUN make .venv/installed")
    assert (ROOT / ".binder" / "requirements.txt").read_text().splitlines() == ["-r ../requirements.txt", "-e ."]


def test_a_container_is_given_nothing_that_git_ignores():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    given = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()}
    assert {name.replace(".venv-*", ".venv*") for name in ignored} - {".venv", "*.egg-info"} <= given


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_files_that_a_page_links_or_names_are_there(path):
    """Names in back quotes count where they begin with a folder of the repository and have a suffix."""
    text = path.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert [place for place in linked if not (path.parent / place).exists()] == []
    folders = "mtrlib|tests|benchmarks|notebooks|params|workflow|docs"
    named = re.findall(rf"`((?:{folders})/[\w/.*-]+\.(?:py|csv|yaml|ipynb|md))`", text)
    assert [place for place in named if not list(ROOT.glob(place))] == []


def test_the_artifact_page_has_every_claim_in_the_papers_words_and_a_notebook_that_judges_it():
    rows = re.findall(r"^\| (\d\.\d) \| (.+?) \| `make .*NOTEBOOKS=(\w+)`", page("artifact"), re.MULTILINE)
    claims = published.read("claims").set_index("id")
    assert {number: words for number, words, _ in rows} == claims.claim.to_dict()
    assert all(name in batch.NOTEBOOKS and name[2] == number[0] for number, _, name in rows)


def test_times_on_the_artifact_page_are_those_that_were_measured():
    """A time that is measured anew is changed in both places, or in neither."""
    times = re.findall(r"\d+ min \d+ s|\d+ minutes|[\d.]+ to [\d.]+ GB", page("artifact"))
    assert len(times) >= 3
    assert [time for time in times if time not in page("running") + page("speed")] == []


def test_the_drawing_shows_every_room_and_is_that_of_its_source():
    """dataset and machine serve all rooms and are on no way of the data."""
    dot, svg = ((ROOT / "docs" / f"architecture.{kind}").read_text() for kind in ("dot", "svg"))
    files = {path.stem for path in (ROOT / "mtrlib").iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms = {name for name in files if name[0] != "_"} - {"dataset", "machine"}
    assert {name for name in rooms if not re.search(rf"\b{name}\b", dot)} == set()
    edges = [re.findall(r"\w+", re.sub(r"\[.*?\]", "", way)) for way in re.findall(r"[\w >-]+->.+?;", dot)]
    ways = {f"{one}->{other}" for way in edges for one, other in pairwise(way)}
    drawn = {title.replace("&#45;&gt;", "->") for title in re.findall(r"<title>(.+?)</title>", svg)}
    assert ways == {title for title in drawn if "->" in title}


def test_every_page_and_notebook_is_in_the_contents_of_the_site_and_every_room_in_its_api():
    index = page("index")
    listed = {(ROOT / "docs" / f"{name}.md").resolve() for name in re.findall(r"^([\w./-]+)$", index, re.MULTILINE)}
    assert {path for path in PAGES if path.parent.name != ".github"} - listed == {ROOT / "docs" / "index.md"}
    assert "../notebooks/*" in index
    rooms = {path.parent.name for path in (ROOT / "mtrlib").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"automodule:: mtrlib\.(\w+)\n", page("api")))
