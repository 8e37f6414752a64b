"""Export: the network as one file that runs without this package, in ONNX or TorchScript.

    encoder     images -> features
    segmenter   images, prototypes of two classes -> logits

Before it is written, the file is compared with the network on inputs of another size. Its metadata holds what a user
needs: how slices are prepared, the scale of the logits, the version (docs/export.md).
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bundle
import torch
import torch.nn.functional as F
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import ROOT, config_paths
from bundle.files import written_whole
from bundle.networks import CosineClassifier, PrototypeHead, load_network
from bundle.networks.alpnet import upsample
from bundle.provenance import describe, fingerprint
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata
from monai.networks.utils import convert_to_torchscript
from torch import Tensor, nn
from torch.jit.frontend import FrontendError

PARTS = ("encoder", "segmenter")
# Formats of a file, with their suffixes.
FORMATS = {"onnx": ".onnx", "torchscript": ".ts"}

# ONNX operator set, old enough for the runtimes of several years.
OPSET = 18

SLICES, HEIGHT, WIDTH, N, M = (torch.export.Dim(name) for name in ("slices", "height", "width", "n", "m"))
# The axes of the inputs that may have any length, with their names.
DYNAMIC = ({0: SLICES, 2: HEIGHT, 3: WIDTH}, {0: N}, {0: M})

# Largest difference between file and network that counts as rounding, as a share of the largest value.
CLOSE = 1e-4

Inputs = tuple[Tensor, ...]


class SliceEncoder(nn.Module):
    """The encoder alone, with the same parameter names as in the whole network, so that ``model.pt`` fits.

    Args:
        encoder: Maps images ``(S, C, H, W)`` to features ``(S, D, h, w)``.
    """

    inputs = ("image",)
    output = "features"

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """Return the ``(S, D, h, w)`` features of ``image (S, C, H, W)``."""
        return self.encoder(image)

    def slice_by_slice(self, *inputs: Tensor) -> Tensor:
        """Return what the network computes for the inputs of ``forward``."""
        return self.encoder(*inputs)

    def example(self, slices: int, size: tuple[int, int], counts: tuple[int, int]) -> Inputs:
        """Return random inputs: ``slices`` of ``size`` (rows, columns); ``counts`` of prototypes are not used here."""
        return (_random(slices, 3, *size),)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of this part."""
        return {}


def scoring_classifier(head: PrototypeHead | None, network: PrototypeHead) -> nn.Module:
    """Return the classifier of inference: the head's, or the network's own if there is no head."""
    return (network if head is None else head).classifier


class PrototypeSegmenter(nn.Module):
    """Encoder and classifier with prototypes as inputs: the part of ``ALPNet`` after pooling the support.

    Parameters are named as in ``ALPNet``, so that ``model.pt`` fits. All slices are scored at once.

    Args:
        encoder: Maps images ``(S, C, H, W)`` to features ``(S, D, h, w)``.
        classifier: Combines the similarities to the prototypes of one class; ``None`` means the paper's classifier.
    """

    inputs = ("image", "background", "foreground")
    output = "logits"

    def __init__(self, encoder: nn.Module, classifier: CosineClassifier | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = CosineClassifier() if classifier is None else classifier

    def forward(self, image: Tensor, background: Tensor, foreground: Tensor) -> Tensor:
        """Segment slices.

        Args:
            image: ``(S, C, H, W)``.
            background: Prototypes ``(N, D)``.
            foreground: Prototypes ``(M, D)``.

        Returns:
            Background and foreground logits, ``(S, 2, H, W)``, in [-scale, scale]; 0 for a class without prototypes.
        """
        features = self.encoder(image)
        pixels = F.normalize(features, dim=1, eps=self.classifier.eps).movedim(1, -1)
        logits = torch.stack([self.score(pixels, background), self.score(pixels, foreground)], dim=1)
        return upsample(logits, image)

    def score(self, pixels: Tensor, prototypes: Tensor) -> Tensor:
        """Return the ``(S, h, w)`` scores of ``pixels (S, h, w, D)`` of unit length for ``prototypes (N, D)``."""
        unit_prototypes = F.normalize(prototypes, dim=1, eps=self.classifier.eps)
        cosine = pixels.flatten(0, 2) @ unit_prototypes.T
        scores = self.classifier.combine(cosine).reshape(pixels.shape[:3])
        # Not `if len(prototypes)`: an exported graph has no branches, so the count must be a tensor.
        count = torch.ones_like(prototypes[:, 0]).sum()
        return torch.where(count > 0, scores, torch.zeros_like(scores))

    def slice_by_slice(self, *inputs: Tensor) -> Tensor:
        """Return what the network's own head computes for the inputs of ``forward``, one slice at a time."""
        image, background, foreground = inputs
        head = PrototypeHead(classifier=self.classifier)
        logits = [head.score(features, background, foreground) for features in self.encoder(image)]
        return upsample(torch.stack(logits), image)

    def example(self, slices: int, size: tuple[int, int], counts: tuple[int, int]) -> Inputs:
        """Return random inputs: ``slices`` of ``size`` (rows, columns), ``counts`` of prototypes of the two classes."""
        image = _random(slices, 3, *size)
        channels = self.encoder(image).shape[1]
        return (image, *(_random(count, channels) for count in counts))

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of this part: the scale of its logits and its classifier."""
        return {"scale": self.classifier.scale, "classifier": describe(self.classifier, code=False)}


Part = SliceEncoder | PrototypeSegmenter
Run = Callable[..., Tensor]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), device="cpu")


def export(part: str, output: str | Path, form: str = "onnx", parser: ConfigParser | None = None) -> float:
    """Write a part of the network to a file, whole or not at all.

    Args:
        part: ``"encoder"`` or ``"segmenter"``.
        output: The file.
        form: ``"onnx"`` or ``"torchscript"``.
        parser: The configs; ``None`` means ``configs/inference.yaml`` and ``configs/export.yaml``.

    Returns:
        The largest difference between the outputs of file and network, as a share of the largest value.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the part or form is unknown, the path cannot be written, the checkpoint does not fit, a
            package is missing, the encoder cannot be exported, or the file's output differs from the network's.
    """
    _refuse_other("the part", part, PARTS)
    path = _checked_output(output, form)
    parser = read_configs() if parser is None else parser
    load_network(parser.get_parsed_content("network_def"), parser.get_parsed_content("checkpoint"))
    module: Part = parser.get_parsed_content(f"{part}_def").eval()
    with torch.no_grad():
        content, run = CONVERTERS[form](module, description(part, module, parser))
        difference = _checked_difference(module, run)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)
    return difference


def read_configs(further: Sequence[Path] = (), keys: Mapping[str, Any] | None = None) -> ConfigParser:
    """Read ``configs/inference.yaml``, ``configs/export.yaml``, further files, and then single keys.

    Raises:
        ValueError: If a file cannot be read, a key is in no config, or a value is of the wrong kind.
    """
    files, keys = [*config_paths("inference", "export"), *further], dict(keys or {})
    refuse_unknown_keys(files, keys, OPTIONS)
    check_merged(files, keys)
    parser = ConfigParser()
    parser.read_config([str(path) for path in files])
    for key, value in {"bundle_root": str(ROOT), **keys}.items():
        parser[key.replace("::", "#")] = value
    return parser


def description(part: str, module: Part, parser: ConfigParser) -> dict[str, Any]:
    """Return the metadata of an exported file: the version, how slices are prepared, and its contents.

    Files of prototypes also state ``encoder`` and ``preprocessing``: they fit if both are equal.
    """
    preprocessing = describe(parser.get_parsed_content("export_preprocessing"), code=False)
    return {
        "name": f"SSL-ALPNet {part}",
        "version": bundle.__version__,
        "orientation": preprocessing["orientation"] or "as acquired",
        "normalization": normalization(parser.get_parsed_content("numbers")),
        "channels": "the slice, three times",
        "encoder": fingerprint(module.encoder),
        "preprocessing": preprocessing,
    } | module.metadata()


def normalization(numbers: Mapping[str, float] | None) -> str:
    """Describe in words how intensities are standardized.

    Args:
        numbers: ``mean`` and ``std`` of the training set; ``None`` if each scan's own are used.
    """
    first = "intensity as in preprocessing, then minus"
    if numbers is None:
        return f"{first} the mean of the scan's voxels, divided by their standard deviation"
    return f"{first} {numbers['mean']}, divided by {numbers['std']}, mean and standard deviation of the training set"


def to_torchscript(module: Part, metadata: Mapping[str, Any]) -> tuple[bytes, Run]:
    """Return the content of a module's TorchScript file, and a function that runs it.

    Raises:
        ValueError: If the module cannot be converted to TorchScript.
    """
    file = io.BytesIO()
    try:
        save_net_with_metadata(convert_to_torchscript(module), file, include_config_vals=False, meta_values=metadata)
    except (FrontendError, RuntimeError, TypeError, ValueError, OSError) as error:  # TorchScript raises any of these
        raise ValueError(f"{_cannot(module, 'TorchScript', error)} Try --format onnx.") from error
    file.seek(0)
    return file.getvalue(), torch.jit.load(file)


def to_onnx(module: Part, metadata: Mapping[str, Any]) -> tuple[bytes, Run]:
    """Return the content of a module's ONNX file, and a function that runs it in ONNX Runtime.

    Raises:
        ValueError: If a package is missing, or the module cannot be converted to ONNX.
    """
    runtime = _needed_for_onnx()
    try:
        program = _onnx_program(module)
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"{_cannot(module, 'ONNX', error)} Try --format torchscript.") from error
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    program.model.metadata_props.update(texts)
    content = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(module.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return content, run


def _onnx_program(module: Part) -> torch.onnx.ONNXProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about its own internals
        program = torch.onnx.export(
            module,
            module.example(slices=2, size=(64, 72), counts=(7, 6)),
            input_names=module.inputs,
            output_names=[module.output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=DYNAMIC[: len(module.inputs)],
            verbose=False,
        )
    assert program is not None  # only the older exporter returns None
    return program


def _checked_difference(module: Part, run: Run) -> float:
    """Compare a file with the network on inputs of other sizes and counts than in the export."""
    inputs = module.example(slices=3, size=(96, 128), counts=(9, 2))
    expected = module.slice_by_slice(*inputs)
    difference = float((run(*inputs) - expected).abs().max() / expected.abs().max())
    if not difference < CLOSE:  # also refuses NaN
        raise ValueError(
            f"the exported file may differ from the network by {CLOSE:.0e} of the largest value, got {difference:.1e}. "
            "Something in the encoder or the classifier depends on the input's size: remove that and export again."
        )
    return difference


def _needed_for_onnx() -> Any:
    """Return ONNX Runtime, if all packages that an export needs are installed."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about every missing part of torchvision
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            package = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"an export to ONNX needs the package {name}: pip install 'ssl-alpnet-bundle[export]'. "
                "--format torchscript needs no further package."
            ) from error
    return package


def _cannot(module: Part, name: str, error: Exception) -> str:
    reason = str(error.__cause__ or error).strip().splitlines()[0]
    return f"{type(module.encoder).__name__} cannot be exported to {name}: {reason.rstrip('.')}."


def _checked_output(output: str | Path, form: str) -> Path:
    """Refuse a path that cannot be written, before any work is done."""
    _refuse_other("--format", form, FORMATS)
    path = Path(output).expanduser()
    if path.suffix != FORMATS[form]:
        raise ValueError(f"--output must end in {FORMATS[form]} for --format {form}, got {path}. Rename it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}). Give --output in another folder.") from error
    return path


def _refuse_other(what: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}. Give one of them.")


CONVERTERS = {"onnx": to_onnx, "torchscript": to_torchscript}
# Options of the command besides the configs' keys.
OPTIONS = ("format", "output", "configs")
