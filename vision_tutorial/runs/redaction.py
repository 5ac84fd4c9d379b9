"""Texts without passwords, keys and tokens, before they are written to a run folder or to wandb."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.errors import UserError

REDACTED = "[redacted]"
_SECRET = (
    r"(?:(?:api|access|private|secret)[_-]?key|secret|token|password|passwd|passphrase|credentials?"
    r"|authorization|cookie)(?![a-z])"
)
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
_VALUE = r"""(?!(?:true|false|null|none)\b)(?:"[^"]*"|'[^']*'|[^\s&]+)"""
_NAMED = (
    (re.compile(r"://[^/\s]*@"), f"://{REDACTED}@"),
    (re.compile(rf"({_SECRET}[\w.-]*[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE), rf"\1{REDACTED}"),
)
_PATTERNS = (
    *_NAMED,
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(rf"([_-]{_SECRET}[\w-]*\s+){_VALUE}", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"\b(?:gh[opsur]|github_pat|hf|sk|wandb_v1)[_-][\w-]{16,}"), REDACTED),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), REDACTED),
)
# What no name of a folder is by chance, as `hf_datasets_cache_2024` and `sk-learn-images` are.
_SURE = re.compile(
    r"\b(?:gh[opsur]_[A-Za-z0-9]{36}|github_pat_\w{82}|hf_[A-Za-z0-9]{34}|AKIA[0-9A-Z]{16}"
    r"|sk-(?:\w+-)?(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{40,}|wandb_v1_\w{40,})(?!\w)"
    rf"|{re.escape(REDACTED)}"
)


def redact(value: Any) -> Any:
    """`value` (text, or mappings and lists of it) without keys, passwords and tokens.

    Taken out: what stands under a secret's name (`api_key`, `--token`, …), what the environment
    holds under such a name, credentials in URLs, and tokens that can be told by their shape.
    """
    if isinstance(value, Mapping):
        return {key: _redact_item(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        flags = ["", *(v if isinstance(v, str) and v.startswith("-") else "" for v in value)]
        return [_redact_item(flag, v) for flag, v in zip(flags, value, strict=False)]
    return _redact_text(value) if isinstance(value, str) else value


def secrets(value: Any, at: str = "") -> Iterator[str]:
    """The dotted keys of the texts in `value` (as for `redact`) that surely hold a secret."""
    if isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from secrets(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, str) and _SURE.search(_redact_text(value, _NAMED)):
        yield at


def refuse_secrets(recipe: Mapping[str, Any]) -> None:
    """UserError where a text that recipe.yaml has to keep as it is holds a password or a token."""
    # of `wandb` it keeps what is no secret
    if key := next(secrets({key: kept for key, kept in recipe.items() if key != "wandb"}), None):
        raise UserError(
            f"{key}: it seems to hold a password, key or token, which recipe.yaml would keep. Take "
            "it out; if it is a path, link to it under another name."
        )


def _redact_item(name: str, item: Any) -> Any:
    harmless = item is None or isinstance(item, bool) or (name[:1] == "-" and "=" in name)
    return REDACTED if _SECRET_NAME.search(name) and not harmless else redact(item)


def _redact_text(text: str, patterns: Sequence[tuple[re.Pattern, str]] = _PATTERNS) -> str:
    for name, secret in os.environ.items():
        if len(secret) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(secret, REDACTED)
    for pattern, replacement in patterns:
        text = pattern.sub(replacement, text)
    return text
