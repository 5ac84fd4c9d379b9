"""Settings of the site, for Sphinx; `docs/make.py` builds it.

Sphinx with Furo: both are maintained, the site searches from disk without a server, and follows the
system's light or dark mode. (Material for MkDocs ends in May 2027, and its successor is a beta
without hooks, of which neither searches from disk without a script from another host.)
"""

from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "vision_tutorial"
html_title = "vision_tutorial"
copyright = "the vision class"
extensions = ["myst_parser"]
myst_fence_as_directive = ["math"]  # what GitHub also draws as a formula
myst_heading_anchors = 4
smartquotes = False  # --option stays two hyphens
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # summaries would be fetched, which a page on disk may not do
html_math_renderer = "mathml"


def inline(writer: Any, node: Any) -> None:
    """A formula in a line, as MathML."""
    replace(writer, convert(node.astext()))


def block(writer: Any, node: Any) -> None:
    """A formula of its own, which scrolls in its box where it is wide."""
    replace(writer, f'<div class="formula">{convert(node.astext(), display="block")}</div>')


def replace(writer: Any, html: str) -> None:
    """Write this instead of a node and what is in it."""
    writer.body.append(html)
    raise SkipNode


def in_its_language(app: Any, page: str, template: str, context: dict, tree: Any) -> None:
    """Korean pages say that they are: browsers choose fonts and voices by it."""
    context["language"] = "ko" if page.startswith("ko/") else "en"


def setup(app: Any) -> None:
    """Formulas become MathML when the site is built: browsers set it without a script."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("html-page-context", in_its_language)
