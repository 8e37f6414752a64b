"""Load weights into a trunk or a whole network: every tensor must match, or the error lists the mismatches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from bundle.tensor_files import read_tensors
from torch import Tensor, nn

# torchvision's names of the weights that it can download.
TORCHVISION_WEIGHTS = {
    ("imagenet", 18): "ResNet18_Weights.IMAGENET1K_V1",
    ("imagenet", 34): "ResNet34_Weights.IMAGENET1K_V1",
    ("imagenet", 50): "ResNet50_Weights.IMAGENET1K_V1",
    ("imagenet", 101): "ResNet101_Weights.IMAGENET1K_V1",
    ("coco", 50): "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
    ("coco", 101): "DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1",
}

# Parts of a checkpoint that a trunk may leave unused: heads, and the omitted stage.
HEADS = ("fc.", "classifier.", "aux_classifier.", "localconv.", "layer4.")


def load_backbone_weights(backbone: nn.Module, weights: str | Path, depth: int) -> None:
    """Load a checkpoint into a ResNet trunk, in place.

    Accepts the state dictionaries of torchvision (ResNet, DeepLabV3), of this bundle and of the authors' code.

    Args:
        backbone: The trunk, with torchvision's parameter names.
        weights: A file, or ``"imagenet"`` / ``"coco"`` to download torchvision's.
        depth: Layers of the trunk; it selects the download.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a tensor is missing, unexpected or of another shape; the message lists them.
    """
    state = _download(str(weights), depth) if str(weights) in ("imagenet", "coco") else _read(Path(weights))
    state = _trunk_of(state)
    expected = backbone.state_dict()
    # Old checkpoints lack num_batches_tracked, and it is not needed: it only counts training batches.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected and not key.startswith(HEADS)]
    _refuse_misfits(weights, f"a ResNet-{depth}", missing, unexpected, _reshaped(state, expected))
    backbone.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)


def load_network(
    network: nn.Module, path: str | Path | None, device: torch.device | str = "cpu", compile_encoder: bool = False
) -> nn.Module:
    """Load trained weights into a whole network and move it to a device, channels last for faster convolutions.

    Args:
        network: The network, as the config builds it.
        path: ``model.pt`` or a training checkpoint; ``None`` leaves the network untrained.
        device: The device to move it to.
        compile_encoder: Whether its ``encoder`` is compiled at first use (``torch.compile``). The head is not, since
            its number of prototypes changes with every call.

    Returns:
        The network itself.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the weights belong to another architecture, or hold values that are not finite; the message
            lists the tensors.
    """
    if path is not None:
        load_weights(network, path)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile_encoder:
        network.get_submodule("encoder").compile()
    return network


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load trained weights into a whole network, on any device.

    Args:
        network: The network.
        path: ``model.pt`` or a training checkpoint.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the weights belong to another architecture, or hold values that are not finite; the message
            lists the tensors.
    """
    state, expected = _read(Path(path)), network.state_dict()
    _refuse_misfits(
        path,
        type(network).__name__,
        missing=[key for key in expected if key not in state],
        unexpected=[key for key in state if key not in expected],
        reshaped=_reshaped(state, expected),
    )
    network.load_state_dict(state)


def trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, for an optimizer."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _reshaped(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]


def _refuse_misfits(
    path: str | Path, network: str, missing: list[str], unexpected: list[str], reshaped: list[str]
) -> None:
    if missing or unexpected or reshaped:
        raise ValueError(
            f"the weights {path} do not fit {network}: missing {_listed(missing)}; unexpected {_listed(unexpected)}; "
            f"of another shape {_listed(reshaped)}. Set the encoder's depth, last_stage and out_channels to those "
            "of the weights."
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}. Give the path of a checkpoint, 'imagenet' or 'coco' to let torchvision "
            "download one, or null ('$None' on the command line) for random weights."
        )
    state = read_tensors(path, "Copy it again, or give another checkpoint.")
    for wrapper in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} must hold a state dictionary (names and tensors), got {type(state).__name__}. "
            "Give another checkpoint."
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ValueError(
            f"weights must be finite numbers, but {path} holds NaN or infinity in {_listed(broken)}. "
            "Give another checkpoint."
        )
    return dict(state)


def _download(name: str, depth: int) -> dict[str, Tensor]:
    if (name, depth) not in TORCHVISION_WEIGHTS:
        raise ValueError(
            f"torchvision has no {name!r} weights for depth {depth}. Give the path of a checkpoint, or null."
        )
    try:
        from torchvision.models import get_weight
    except ImportError as error:
        raise ValueError(
            f"torchvision downloads the weights {name!r}, and it is not installed. "
            "Install torchvision, or give the path of a checkpoint."
        ) from error
    return dict(get_weight(TORCHVISION_WEIGHTS[name, depth]).get_state_dict(progress=True))


def _trunk_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes of torchvision's names: ``encoder.`` (ours, the authors') and ``backbone.`` (DeepLab)."""
    for prefix in ("encoder.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _listed(names: list[str], most: int = 8) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
