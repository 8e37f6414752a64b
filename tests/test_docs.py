"""README and docs: Python blocks run, links lead somewhere, names import, and pages stay short."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from bundle.__main__ import VERBS

ROOT = Path(__file__).parents[1]
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*READ, ROOT / "models" / "README.md", *sorted((ROOT / "docs" / "results").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in READ
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def newest_changes() -> str:
    return text_of(ROOT / "CHANGELOG.md").split("\n## [")[1]


def names_in(text: str) -> set[str]:
    """Dotted names such as ``bundle.networks.ALPNet``; ``bundle.py`` and names in a path are none."""
    return {name for name in re.findall(r"(?<![\w./])bundle(?:\.[A-Za-z]\w*)+", text) if not name.endswith(".py")}


def old_names(text: str) -> set[str]:
    """The first column of the table of moved names, ``bundle.a, b`` being two of them."""
    rows = re.findall(r"^\| `(bundle\.[^`]*)` \|", text, re.MULTILINE)
    return {
        name.strip() if name.startswith("bundle.") else f"bundle.{name.strip()}" for r in rows for name in r.split(",")
    }


def imports(name: str) -> bool:
    """Whether a dotted name is a module, or what a module holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if not _is_module(".".join(parts[:end])):
            continue
        found = import_module(".".join(parts[:end]))
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_block_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block, "<docs>", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(page))
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_headings_lead_to_one(page: Path) -> None:
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(page)):
        headings = re.findall(r"^#+ (.*)$", text_of(page.parent / target if target else page), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        missing += [f"{target}#{anchor}"] if anchor not in anchors else []
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_name_of_the_package_imports(page: Path) -> None:
    assert [name for name in sorted(names_in(text_of(page))) if not imports(name)] == []


def test_a_name_of_the_newest_changes_imports_or_is_an_old_one_of_the_table() -> None:
    text = newest_changes()
    assert [name for name in sorted(names_in(text) - old_names(text)) if not imports(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_of_the_package_has_a_verb(page: Path) -> None:
    verbs = re.findall(r"(?<![\w.])(?:python -m bundle|alpnet)[ .]([a-z_]+)", text_of(page))
    assert [verb for verb in sorted(set(verbs)) if verb not in VERBS] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_path_of_the_project_exists(page: Path) -> None:
    paths = re.findall(r"(?<![\w/<>.])(?:bundle|configs|tests|tools)/[\w/]+\.(?:py|yaml|json|sh)", text_of(page))
    assert [path for path in sorted(set(paths)) if not (ROOT / path).exists() and "data_" not in path] == []


def test_the_functions_and_tests_of_the_method_exist() -> None:
    """``docs/method.md`` leaves out ``bundle.``, and the folder and ``.py`` of a test."""
    rows = re.findall(
        r"^\| [^|]+ \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text_of(ROOT / "docs" / "method.md"), re.MULTILINE
    )
    functions = {f"bundle.{name}" for row in rows for name in re.findall(r"`([a-z]\w*\.[\w.]+)`", row[0])}
    tests = {name for row in rows for name in re.findall(r"`(test_\w+)`", row[1])}
    assert len(functions) > 20
    assert len(tests) > 10
    assert [name for name in sorted(functions) if not imports(name)] == []
    assert [name for name in sorted(tests) if not list((ROOT / "tests").rglob(f"{name}.py"))] == []


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= 600


def test_the_docs_apart_from_the_results_stay_below_ten_thousand_words() -> None:
    assert sum(len(text_of(page).split()) for page in READ) <= 10_000
