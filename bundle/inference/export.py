"""Export: the network as one file that runs without this package, in ONNX or TorchScript.

    encoder     images -> features
    segmenter   images, prototypes of two classes -> logits

The file is compared with the network before it is written, at another size than it was made with. It carries what a
user has to know: how slices are made, the scale of the logits, the version (docs/export.md).
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

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata
from monai.networks.utils import convert_to_torchscript
from torch import Tensor, nn
from torch.jit.frontend import FrontendError

import bundle
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import ROOT, config_paths
from bundle.files import written_whole
from bundle.networks import CosineClassifier, PrototypeHead, load_network
from bundle.networks.alpnet import upsample
from bundle.provenance import describe, fingerprint

PARTS = ("encoder", "segmenter")
FORMATS = {"onnx": ".onnx", "torchscript": ".ts"}
"""What a file can be, and how its name ends."""

OPSET = 18
"""Of ONNX: old enough for the runtimes of several years."""

SLICES, HEIGHT, WIDTH, N, M = (torch.export.Dim(name) for name in ("slices", "height", "width", "n", "m"))
DYNAMIC = ({0: SLICES, 2: HEIGHT, 3: WIDTH}, {0: N}, {0: M})
"""Axes of the inputs whose length is free, with their names."""

CLOSE = 1e-4
"""Largest difference between file and network that is taken for rounding, as a share of the largest value."""

Inputs = tuple[Tensor, ...]


class SliceEncoder(nn.Module):
    """The encoder alone, with the parameter names that it has in the whole network, so that ``model.pt`` fits.

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
        """Return what a user has to know of this part."""
        return {}


def scoring_classifier(head: PrototypeHead | None, network: PrototypeHead) -> nn.Module:
    """Return the classifier that inference scores with: the head's, or the network's own where there is no head."""
    return (network if head is None else head).classifier


class PrototypeSegmenter(nn.Module):
    """Encoder and classifier, with the prototypes as inputs: what ``ALPNet`` computes once its support is pooled.

    Parameters are named as in ``ALPNet``, so that ``model.pt`` fits. All slices are scored at once.

    Args:
        encoder: Maps images ``(S, C, H, W)`` to features ``(S, D, h, w)``.
        classifier: Combines the similarities to the prototypes of one class; ``None`` is the paper's.
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
        # Not `if len(prototypes)`: an exported graph goes one way only, so the count must be a tensor.
        count = torch.ones_like(prototypes[:, 0]).sum()
        return torch.where(count > 0, scores, torch.zeros_like(scores))

    def slice_by_slice(self, *inputs: Tensor) -> Tensor:
        """Return what the network's own head computes for the inputs of ``forward``, one slice after the other."""
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
        """Return what a user has to know of this part."""
        return {"scale": self.classifier.scale, "classifier": describe(self.classifier, code=False)}


Part = SliceEncoder | PrototypeSegmenter
Run = Callable[..., Tensor]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), device="cpu")


def export(part: str, output: str | Path, form: str = "onnx", parser: ConfigParser | None = None) -> float:
    """Write a part of the network to a file, which is then whole, or not there.

    Args:
        part: ``"encoder"`` or ``"segmenter"``.
        output: The file.
        form: ``"onnx"`` or ``"torchscript"``.
        parser: The configs; ``None`` is ``configs/inference.yaml`` and ``configs/export.yaml``.

    Returns:
        The largest difference between what the file and the network compute, as a share of the largest value.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If there is no such part or form, the path cannot be written, the checkpoint does not fit, a
            package is missing, the encoder cannot be exported, or the file does not compute what the network does.
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
    """Read ``configs/inference.yaml``, ``configs/export.yaml``, then further files, then single keys.

    Raises:
        ValueError: If a file cannot be read, a key belongs to no config, or a value is of the wrong kind.
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
    """Return what an exported file tells of itself: the version, how slices are made for it, what it is made of.

    ``encoder`` and ``preprocessing`` are what files of prototypes tell, too: they fit where both are equal.
    """
    preprocessing = describe(parser.get_parsed_content("export_preprocessing"), code=False)
    return {
        "name": f"SSL-ALPNet {part}",
        "version": bundle.__version__,
        "orientation": preprocessing["orientation"] or "as acquired",
        "normalization": normalization(parser.get_parsed_content("statistics_file")),
        "channels": "the slice, three times",
        "encoder": fingerprint(module.encoder),
        "preprocessing": preprocessing,
    } | module.metadata()


def normalization(statistics_file: str | None) -> str:
    """Say how intensities are standardized.

    Args:
        statistics_file: The training set's numbers; ``None`` if each scan has its own.

    Raises:
        FileNotFoundError: If the file is not there.
    """
    first = "intensity as in preprocessing, then minus"
    if statistics_file is None:
        return f"{first} the mean of the scan's voxels, divided by their standard deviation"
    if not Path(statistics_file).is_file():
        raise FileNotFoundError(
            f"no intensity statistics at {statistics_file}. Training on CT writes them beside model.pt; copy that "
            "file, too."
        )
    numbers = json.loads(Path(statistics_file).read_text(encoding="utf-8"))
    return f"{first} {numbers['mean']}, divided by {numbers['std']}, mean and standard deviation of the training set"


def to_torchscript(module: Part, metadata: Mapping[str, Any]) -> tuple[bytes, Run]:
    """Return a module as the content of a TorchScript file, and this content as a function.

    Raises:
        ValueError: If TorchScript cannot hold the module.
    """
    file = io.BytesIO()
    try:
        save_net_with_metadata(convert_to_torchscript(module), file, include_config_vals=False, meta_values=metadata)
    except (FrontendError, RuntimeError, TypeError, ValueError, OSError) as error:  # it has no one kind of error
        raise ValueError(f"{_cannot(module, 'TorchScript', error)} --format onnx may do.") from error
    file.seek(0)
    return file.getvalue(), torch.jit.load(file)


def to_onnx(module: Part, metadata: Mapping[str, Any]) -> tuple[bytes, Run]:
    """Return a module as the content of an ONNX file, and this content as a function, which runs in ONNX Runtime.

    Raises:
        ValueError: If a package is missing, or ONNX cannot hold the module.
    """
    runtime = _needed_for_onnx()
    try:
        program = _onnx_program(module)
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(_cannot(module, "ONNX", error)) from error
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
        warnings.simplefilter("ignore")  # of torch over its own parts
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
    assert program is not None  # it is for the exporter that went before this one
    return program


def _checked_difference(module: Part, run: Run) -> float:
    """Compare a file with the network, at other sizes and counts than it was made with."""
    inputs = module.example(slices=3, size=(96, 128), counts=(9, 2))
    expected = module.slice_by_slice(*inputs)
    difference = float((run(*inputs) - expected).abs().max() / expected.abs().max())
    if not difference < CLOSE:  # NaN is refused, too
        raise ValueError(
            f"the file would not compute what the network does: it differs by {difference:.1e} of the largest value, "
            f"where {CLOSE:.0e} is allowed. Something in the encoder or the classifier depends on its input's size."
        )
    return difference


def _needed_for_onnx() -> Any:
    """Return ONNX Runtime, if all is there that an export needs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of each part of torchvision that is not there
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
    """Refuse a path that cannot be written before any work is done."""
    _refuse_other("--format", form, FORMATS)
    path = Path(output).expanduser()
    if path.suffix != FORMATS[form]:
        raise ValueError(f"--output must end in {FORMATS[form]} for --format {form}, got {path}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}). Give --output in another folder.") from error
    return path


def _refuse_other(what: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}.")


CONVERTERS = {"onnx": to_onnx, "torchscript": to_torchscript}
OPTIONS = ("format", "output", "configs")
"""What the command takes besides keys of the configs."""
