"""``make zoo``: what goes into MONAI's model zoo, as that repository has it.

zoo/models/<name>/        configs, docs, models, LICENSE, the package, large_files.yml
zoo/ci/unit_tests/        test_<name>.py and test_<name>_dist.py
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "abdominal_mr_fewshot_segmentation"
PARTS = ("bundle", "configs", "docs", "models")
HOST = "https://github.com/Project-MONAI/model-zoo/releases/download/hosting_storage_v1"
LARGE_FILES = """# Not part of the pull request: the zoo's maintainers host the weights under this address.
large_files:
- path: "models/model.pt"
  url: "{host}/{name}_model.pt"
  hash_val: "{digest}"
  hash_type: "sha256"
"""


def make_zoo(target: Path) -> Path:
    """Write the two folders, anew.

    Args:
        target: Where; it is replaced if it is a folder that this made.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: If the target holds something else.
    """
    if target.exists() and not (target / "models" / NAME).is_dir():
        raise ValueError(f"{target} holds something other than the zoo's folders. Remove it, or choose another one.")
    shutil.rmtree(target, ignore_errors=True)
    folder = target / "models" / NAME
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.ts", "*.onnx"))
    shutil.copy(ROOT / "LICENSE", folder)
    digest = hashlib.sha256((ROOT / "models" / "model.pt").read_bytes()).hexdigest()
    text = LARGE_FILES.format(host=HOST, name=NAME, digest=digest)
    (folder / "large_files.yml").write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "tools" / "zoo", target / "ci" / "unit_tests", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


if __name__ == "__main__":
    print(make_zoo(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "zoo")))
