"""The words of tables and pages, in English and Korean: from words.json of a folder."""

import json
from functools import cache
from importlib import resources

LANGUAGES = ("en", "ko")


@cache
def words(language: str, folder: str = __package__) -> dict[str, str]:
    """The words in one language. folder: the package whose words.json it is."""
    text = resources.files(folder).joinpath("words.json").read_text("utf-8")
    place = LANGUAGES.index(language)
    return {key: pair[place] for key, pair in json.loads(text).items()}


def state_word(status: str, language: str) -> str:
    """How a run stands; a status that is not known stays as it is."""
    return words(language).get(f"state {status}", status)


def key_words(key: str, language: str) -> str:
    """A recipe's key, such as `warmup.lr`, as the head of a column."""
    if language == "en":
        return key
    first, _, part = key.partition(".")
    known = words(language)
    return f"{known.get(f'key {first}', first)} {known.get(f'part {part}', part)}".strip()
