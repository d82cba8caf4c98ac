"""Every test asserts something: itself, or by a function of the tests that it calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
#: Calls that fail where the code is wrong.
ASSERTING = ("raises", "warns", "fail", "deprecated_call")
FILES = sorted(TESTS.rglob("*.py"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node


def called(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the last part of the name of everything that is called."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            name = node.func
            yield name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


def asserts(function: ast.FunctionDef) -> bool:
    if any(isinstance(node, ast.Assert) for node in ast.walk(function)):
        return True
    return any(name in ASSERTING or name.startswith(("assert_", "check_")) for name in called(function))


def silent_tests(source: str, helpers: set[str]) -> list[str]:
    """Return the names of tests that assert nothing, where `helpers` are functions elsewhere that do."""
    found = list(functions(ast.parse(source)))
    helpers = helpers | {function.name for function in found if asserts(function)}
    return [
        function.name
        for function in found
        if function.name.startswith("test_") and not asserts(function) and helpers.isdisjoint(called(function))
    ]


@pytest.fixture(scope="module")
def helpers() -> set[str]:
    shared = [path for path in FILES if path.name == "conftest.py" or "helpers" in path.parts]
    return {
        function.name for path in shared for function in functions(ast.parse(path.read_text())) if asserts(function)
    }


@pytest.mark.parametrize("path", [path for path in FILES if path.name.startswith("test_")], ids=lambda path: path.stem)
def test_every_test_asserts(path: Path, helpers: set[str]) -> None:
    assert silent_tests(path.read_text(), helpers) == []


def test_a_test_without_an_assertion_is_found() -> None:
    source = "def check():\n    assert 1\ndef test_a():\n    check()\ndef test_b():\n    print(1)\n"
    assert silent_tests(source, set()) == ["test_b"]
    assert silent_tests(source, {"print"}) == []
