"""The pages: those in Japanese are in step with those in English, and the site shows all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")

if not (ROOT / "mkdocs.yml").exists():
    pytest.skip("no source tree", allow_module_level=True)


def outline(text):
    """The levels of the headings of a page, in their order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", CODE.sub("", text), re.MULTILINE)]


def linked(text):
    """What a page links to, whichever the language."""
    return {link.replace(".ja.md", ".md") for link in LINK.findall(text)}


@pytest.mark.parametrize("english", ["README.md", "docs/quickstart.md"])
def test_the_japanese_page_has_the_headings_commands_tables_and_links_of_the_english_one(english):
    japanese = ROOT / english.replace(".md", ".ja.md")
    want, got = (ROOT / english).read_text("utf-8"), japanese.read_text("utf-8")
    assert CODE.findall(got) == CODE.findall(want)
    assert outline(got) == outline(want)
    assert linked(got) == linked(want)
    assert [line.count("|") for line in got.splitlines() if line.startswith("|")] == [
        line.count("|") for line in want.splitlines() if line.startswith("|")
    ]


def test_every_page_is_in_the_navigation_of_the_site():
    rows = set(re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert {page.name for page in DOCS.glob("*.md")} <= rows


def test_the_version_is_said_once_with_its_date():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/lowbit/__init__.py").read_text())[1]
    date = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation
