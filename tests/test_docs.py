"""The site of the documentation as it was built by `make docs`: its links lead somewhere, and a browser opens it."""

import os
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

import oracles
import pytest

from mtrlib import machine

SITE = machine.root() / "docs" / "_build" / "html"
FIRST = SITE / "docs" / "index.html"
pytestmark = pytest.mark.skipif(
    not FIRST.exists() and os.environ.get("MTRLIB_DOCS") != "required", reason="the site was not built: make docs"
)


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors = [], {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [named[name] for name in ("href", "src") if named.get(name)]
        self.anchors |= {named[name] for name in ("id", "name") if named.get(name)}


def test_every_link_inside_the_site_leads_to_a_page_and_a_place_on_it():
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in SITE.rglob("*.html")}
    assert len(pages) > 15
    broken = [f"{path.relative_to(SITE)}: {link}" for path in pages for link in _broken(path, pages)]
    assert not broken, "\n".join(broken)


def test_a_link_that_leads_nowhere_is_seen():
    text = (
        '<a href="missing.html"></a><a href="#missing"></a><a href="index.html#top"></a><a id="here" href="#here"></a>'
    )
    assert list(_broken(FIRST, {FIRST: Page(text)})) == ["missing.html", "#missing"]


def _broken(path, pages):
    for link in pages[path].links:
        address, anchor = urldefrag(link)
        if urlsplit(link).scheme or link.startswith("//"):
            continue
        target = (path.parent / unquote(urlsplit(address).path)).resolve() if address else path
        known = target.suffix != ".html" or target not in pages or unquote(anchor) in pages[target].anchors
        if not target.exists() or not known:
            yield link


@pytest.mark.skipif(oracles.no_chromium(), reason="no chromium")
def test_a_browser_opens_it_without_complaint():
    for page in (FIRST, SITE / "README.html", SITE / "notebooks" / "results.html", SITE / "docs" / "api.html"):
        document, complaints = oracles.opened(page)
        assert "<h1" in document
        assert not complaints
