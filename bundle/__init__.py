"""SSL-ALPNet: few-shot segmentation of medical volumes, learned from superpixels instead of labels.

A volume passes through the rooms:

    prepare/      downloads -> folders of volumes and label maps
    transforms/   files -> volumes: orientation, spacing, intensity; slices -> superpixels, views; scores -> masks
    data/         scans, NIfTI files, the superpixel cache, episodes, the phantoms
    networks/     images -> features -> prototypes -> similarity -> logits
    training/     episodes -> loss -> weights; checkpoints, log
    inference/    encoded support + query volume -> scores of every organ; files of prototypes, export, the next scan
    evaluation/   predictions -> masks, overlays, metrics, tables, reports; cross-validation
    monai_label   the same inference behind a MONAI Label server
    command_line/ configs by name, checks of what a user types, errors in one sentence
    benchmark/    speed and memory on a machine; nothing imports it

Every room uses ``keys`` (the entries of the data dictionaries), ``files`` (written whole or not at all),
``distributed`` (several processes) and ``root`` (the folders of configs and weights). In Python, ``bundle.segment``
and ``bundle.Segmenter`` do what the command ``inference`` does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundle.inference.segment import Segmenter, segment

__version__ = "0.5.0"

__all__ = ["Segmenter", "segment"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the commands' manuals do not wait for PyTorch.
    if name in __all__:
        from bundle.inference import segment as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
