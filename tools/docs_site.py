"""Hook of mkdocs: pages from outside of docs/, the reference from docstrings, and links that leave the site.

A link in a Markdown file is a path in the repository, so that it works there. On the site a file that is a page is
linked as such; any other is named without a link. One that leads nowhere is an error.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "README.ja.md": "index.ja.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "src/lowbit/assets/MODEL_CARD.md": "model-card.md",
}
"""Files of the repository that are pages, by their paths there."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
log = logging.getLogger("mkdocs.plugins.docs_site")


def reference() -> str:
    """The page with everything public, from docstrings."""
    sys.path.insert(0, str(ROOT / "src"))
    import lowbit  # importing it needs no compiled module

    names = [name for name in lowbit.__all__ if not name.startswith("_")]
    return "# Reference\n\nEverything that `import lowbit` offers.\n" + "".join(
        f"\n::: lowbit.{name}\n" for name in names
    )


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links within the repository into links within the site."""
    here = next((path for path, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def translate(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        target, _, anchor = link.partition("#")
        if not target or "://" in link or link.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not os.path.exists(ROOT / path):
            log.warning(f"{here}: {link} leads nowhere")
        name = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if name is None:
            return text
        relative = posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"

    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)  # code is left as it is
    return "".join(block if block.startswith("```") else LINK.sub(translate, block) for block in blocks)
