"""References of the methods text: BibTeX entries, the app's own and those of models and estimators."""

from __future__ import annotations

import re
from importlib import resources

_ENTRY = re.compile(r"@\w+\{(?P<key>[^\s,{}]+),(?P<body>.*?)\n\s*\}", re.DOTALL)
_FIELD = re.compile(r"(\w+)\s*=\s*\{(.*?)\},?\s*(?=\n|$)", re.DOTALL)
_MARK = re.compile(r"\[@([^\s\[\]]+)\]")
#: Fields that every entry needs; for a book, ``journal`` is the publisher.
_NEEDED = ("author", "year", "title", "journal")


def bundled_bibliography() -> str:
    """Return the BibTeX entries of the works that the app itself, or several models or estimators, cite."""
    return resources.files("qmri_bidsapp.data").joinpath("boilerplate.bib").read_text(encoding="utf-8")


def format_references(bibtex: str) -> dict[str, str]:
    """Format BibTeX entries.

    Parameters
    ----------
    bibtex : str
        Entries with the fields author, year, title and journal, and, optionally, volume with pages, and doi; the
        closing brace of an entry is on a line of its own.

    Returns
    -------
    dict
        Key -> reference, one line.

    Raises
    ------
    ValueError
        If an entry lacks a field, or two different entries have the same key.
    """
    references: dict[str, str] = {}
    for entry in _ENTRY.finditer(bibtex):
        key, field = entry["key"], {name: " ".join(text.split()) for name, text in _FIELD.findall(entry["body"])}
        if missing := [name for name in _NEEDED if name not in field]:
            raise ValueError(f"Reference {key} needs the field {missing[0]}, got {', '.join(field) or 'none'}.")
        place = f"{field['journal']} {field['volume']}:{field['pages']}" if "volume" in field else field["journal"]
        doi = f". doi:{field['doi']}" if "doi" in field else ""
        text = f"{field['author']} ({field['year']}). {field['title']}. {place}{doi}"
        if references.setdefault(key, text) != text:
            raise ValueError(
                f"Two references have the key {key}: {references[key]!r} and {text!r}; rename one of them."
            )
    return references


def cited_keys(text: str) -> list[str]:
    """Return the keys of the ``[@key]`` marks of a text, each once, in the order of their first use."""
    return list(dict.fromkeys(_MARK.findall(text)))


def number_marks(text: str, numbers: dict[str, int]) -> str:
    """Return a text with ``[1]``, ``[2]``, ... in place of its ``[@key]`` marks."""
    return _MARK.sub(lambda mark: f"[{numbers[mark[1]]}]", text)
