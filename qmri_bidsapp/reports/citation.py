"""The methods text with its references, as Markdown and HTML."""

from __future__ import annotations

from html import escape
from pathlib import Path

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.data.bibliography import bundled_bibliography, cited_keys, format_references, number_marks


def resolve(text: str, bibliography: str = "") -> tuple[str, list[str]]:
    """Turn the ``[@key]`` marks of a text into numbers.

    Parameters
    ----------
    text : str
    bibliography : str
        BibTeX entries beside the bundled ones.

    Returns
    -------
    str
        The text with ``[1]``, ``[2]``, ... in the order of first use.
    list of str
        The references in that order.

    Raises
    ------
    ValueError
        If a key has no entry, or the bibliography is not valid; see `format_references`.
    """
    known = format_references(bundled_bibliography() + bibliography)
    keys = cited_keys(text)
    if missing := [key for key in keys if key not in known]:
        raise ValueError(f"The methods text cites {', '.join(missing)}, but no bibliography has an entry of that key.")
    numbers = {key: number for number, key in enumerate(keys, start=1)}
    return number_marks(text, numbers), [known[key] for key in keys]


def write_citation(out_dir: Path, text: str, bibliography: str = "") -> None:
    """Write ``logs/CITATION.md`` and ``logs/CITATION.html``.

    Parameters
    ----------
    out_dir : Path
    text : str
        Paragraphs, separated by empty lines, with ``[@key]`` marks.
    bibliography : str
        BibTeX entries beside the bundled ones.
    """
    body, references = resolve(text, bibliography)
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
