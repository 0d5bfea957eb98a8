# SPDX-License-Identifier: BSD-3-Clause
"""What the documentation site needs beside `mkdocs.yml`: a hook of mkdocs, an extension of griffe.

The pages are read in two places. In the repository their links to source files work as they are;
the site has no sources, so there such a link becomes the path of the file. Docstrings are
written for `help()`; the site wants their examples and code blocks as Markdown has them.
"""

import re
from pathlib import Path
from typing import Any

import griffe

LINK_UP = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)#]*)(?:#[^)]*)?\)")
DOCS = Path(__file__).parents[1] / "docs"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links to files outside of docs/ by the path of the file, or by their words."""
    folder = (DOCS / page.file.src_uri).parent

    def without_link(link: re.Match[str]) -> str:
        text, way_up, path = link.groups()
        if (folder / way_up / path).resolve().is_relative_to(DOCS):
            return link[0]
        return f"`{path}`" if text.strip("`/") in path else text

    return LINK_UP.sub(without_link, markdown)


class HouseDocstrings(griffe.Extension):
    """Reads `Example:` as a section of examples, and the `::` before a code block as a colon."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.M)
