"""Nodes of the graphs, and the resources that they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Resources:
    """Resources of a node.

    Attributes
    ----------
    n_threads : int
        Threads of steps that use several.
    device : str
        Torch device of the fits.
    """

    n_threads: int
    device: str = "cpu"


def make_node(interface: Any, name: str, title: str, *, n_procs: int = 1, mem_gb: float = 0.5, **inputs: Any) -> Any:
    """Return a node; `title`, unique within a subject, is shown while it runs."""
    from nipype.pipeline.engine import Node

    node = Node(interface(**inputs), name=name, n_procs=n_procs, mem_gb=mem_gb)
    node.title = title
    return node


def make_identity(name: str, fields: list[str]) -> Any:
    """Return a node that passes its inputs on."""
    from nipype.interfaces.utility import IdentityInterface
    from nipype.pipeline.engine import Node

    return Node(IdentityInterface(fields=fields), name=name)
