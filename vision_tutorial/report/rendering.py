"""The page as one text: skeleton, style, script and data, and the policy that keeps it to itself.

The data lie in a script element of a type that no browser executes; the policy lets run only the
one script whose digest it names, and lets nothing be fetched.
"""

import base64
import datetime
import hashlib
import html
import json
from importlib import resources
from typing import Any

from .. import __version__

SCRIPTS = ("elements", "table", "chart", "confusion", "overview", "one_run")
_POLICY = (
    "default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(contents: dict[str, Any], title: str | None = None) -> str:
    """The whole page. contents: `contents.contents`'s; title: of the page, untrusted too."""
    made = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    words = {key: html.escape(word) for key, word in contents["words"].items()}
    script = "\n".join(['"use strict";', *(asset(f"{name}.js") for name in SCRIPTS)])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return asset("page.html").format(
        lang=contents["lang"],
        policy=_POLICY.format(digest=digest),
        title=html.escape(title or contents["words"]["title"]),
        words=words,
        style=asset("style.css"),
        data=_embedded(contents | {"made": made, "version": __version__}),
        script=script,
    )


def _embedded(value: Any) -> str:
    """JSON for a script element: no letter in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def asset(name: str) -> str:
    """A file of this folder."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")
