"""Write the network as one file that runs without this package, in ONNX or TorchScript.

    python -m bundle export encoder   --output encoder.onnx     images -> features
    python -m bundle export segmenter --output segmenter.onnx   images, prototypes of two classes -> logits

Options of both, and any key of configs/inference.yaml and configs/export.yaml:

--format      onnx or torchscript (default: onnx)
--output      file to write, ending in .onnx or .ts (default: <encoder or segmenter>.<ending> in the working folder)
--checkpoint  the trained weights (default: models/model.pt of the bundle)
--configs     further config files by name or path, such as preset_paper,data_sabs_ct (default: none)

Before it is written, the file is compared with the network on inputs of another size. Its metadata holds what a user
needs: how slices are prepared, the scale of the logits, the version (docs/export.md).
"""

from __future__ import annotations

from typing import Any

from bundle.command_line.configs import config_paths
from bundle.inference.export import FORMATS, export, read_configs


def encoder(format: str = "onnx", output: str | None = None, configs: Any = None, **keys: Any) -> None:
    """Write the encoder: images -> features. `export --help` lists the options."""
    _export("encoder", format, output, configs, keys)


def segmenter(format: str = "onnx", output: str | None = None, configs: Any = None, **keys: Any) -> None:
    """Write encoder and head: images, prototypes of two classes -> logits. `export --help` lists the options."""
    _export("segmenter", format, output, configs, keys)


def _export(part: str, form: str, output: str | None, configs: Any, keys: dict[str, Any]) -> None:
    if form not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}. Write --format onnx.")
    path = f"{part}{FORMATS[form]}" if output is None else output
    difference = export(part, path, form, read_configs(config_paths(configs), keys))
    print(f"{path}: differs from the network by {difference:.1e} of the largest value")
