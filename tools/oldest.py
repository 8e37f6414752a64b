"""Print the oldest versions that pyproject.toml admits, as constraints for ``make test-matrix``."""

from __future__ import annotations

import re
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def oldest() -> list[str]:
    """Return ``name==version`` of every declared requirement that has a lower bound."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert listed is not None, "pyproject.toml has a list of dependencies"
    return [f"{name}=={version}" for name, version in re.findall(r'^ +"([\w-]+)>=([\d.]+)",$', listed[1], re.MULTILINE)]


if __name__ == "__main__":
    print("\n".join(oldest()))
