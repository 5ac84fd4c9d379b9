"""A recipe's `imports`: a student's own entries, in files that are code and so need trust."""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import UserError

IMPORTED: set[str] = set()  # digests of the plug-ins that have run in this process


def import_files(paths: Sequence[Path], trusted: bool) -> None:
    """Run the recipe's `imports`. UserError where they are not trusted, or fail."""
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in IMPORTED:  # several runs of one recipe, or a second training in a notebook
            continue
        if not trusted:
            raise UserError(
                f"the recipe imports {path}, which is code that would run on this machine. "
                "Read it, then add --trust-imports."
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path}: failed to import: {type(error).__name__}: {error}") from error
        IMPORTED.add(digest)
