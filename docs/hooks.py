"""What MkDocs does besides: recipes are part of the site, so that links to them lead somewhere."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add the recipes as they are."""
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **given: Any) -> str:
    """In the repository the way to a recipe leads out of docs/, on the site it stays inside."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./recipes/", r"](\1recipes/", markdown)
