"""The methods text with its references, as Markdown and HTML."""

from __future__ import annotations

import re
from html import escape
from importlib import resources
from pathlib import Path

from qmri_bidsapp.artifacts.atomic import atomic_file

_ENTRY = re.compile(r"@\w+\{(?P<key>\w+),(?P<body>.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"(\w+)\s*=\s*\{(.*?)\},?\s*(?=\n|$)")
_MARK = re.compile(r"\[@(\w+)\]")


def read_references() -> dict[str, str]:
    """Return key -> formatted reference of the bundled bibliography."""
    text = resources.files("qmri_bidsapp.data").joinpath("boilerplate.bib").read_text(encoding="utf-8")
    references = {}
    for entry in _ENTRY.finditer(text):
        field = dict(_FIELD.findall(entry["body"]))
        place = f"{field['journal']} {field['volume']}:{field['pages']}" if "volume" in field else field["journal"]
        doi = f". doi:{field['doi']}" if "doi" in field else ""
        references[entry["key"]] = f"{field['author']} ({field['year']}). {field['title']}. {place}{doi}"
    return references


def resolve(text: str) -> tuple[str, list[str]]:
    """Turn ``[@key]`` marks into numbers.

    Returns
    -------
    str
        The text with ``[1]``, ``[2]``, ... in the order of first use.
    list of str
        The references in that order.

    Raises
    ------
    KeyError
        If a key is not in the bibliography.
    """
    known = read_references()
    order: dict[str, int] = {}
    for key in _MARK.findall(text):
        known[key]
        order.setdefault(key, len(order) + 1)
    return _MARK.sub(lambda mark: f"[{order[mark[1]]}]", text), [known[key] for key in order]


def write_citation(out_dir: Path, text: str) -> None:
    """Write ``logs/CITATION.md`` and ``logs/CITATION.html``.

    Parameters
    ----------
    out_dir : Path
    text : str
        Paragraphs, separated by empty lines, with ``[@key]`` marks.
    """
    body, references = resolve(text)
    paragraphs = [" ".join(part.split()) for part in body.split("\n\n") if part.strip()]
    listed = "\n".join(f"{number}. {item}" for number, item in enumerate(references, start=1))
    markdown = "# Methods\n\n" + "\n\n".join(paragraphs) + f"\n\n## References\n\n{listed}\n"
    rows = "".join(f"<li>{escape(item)}</li>" for item in references)
    html = "".join(f"<p>{escape(part)}</p>" for part in paragraphs)
    body = f"{html}<h3>References</h3><ol>{rows}</ol>"
    page = f'<!doctype html><html><head><meta charset="utf-8"><title>Methods</title></head><body>{body}</body></html>\n'
    logs = Path(out_dir) / "logs"
    for name, content in (("CITATION.md", markdown), ("CITATION.html", page)):
        with atomic_file(logs / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
