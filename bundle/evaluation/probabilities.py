"""Probabilities of each organ as files, on the grid of the scan's file.

probabilities (O, H, W, Z)  ->  <folder>/<scan>/<organ>.nii.gz, bytes that every reader scales to [0, 1]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle.data.nifti import name_of, save_nifti, source_of
from bundle.files import safe_name
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import IMAGE, PROBABILITIES
from bundle.transforms.masks import organ_ids_of
from bundle.transforms.probabilities import CERTAIN
from bundle.transforms.volumes import restore_grid
from ignite.engine import Engine, Events


class SaveProbabilities:
    """Write the probabilities of every organ of a scan that has any; see ``AddProbabilitiesd`` for what they mean.

    They are sampled as the mask is, so that both agree in every voxel; outside of the network's crop they are 0.

    Args:
        folder: Where ``<scan>/<organ>.nii.gz`` goes.
        inferer: Gives the organs.
    """

    def __init__(self, folder: str | Path, inferer: VolumeInferer) -> None:
        self.folder = Path(folder)
        self.inferer = inferer

    def attach(self, engine: Engine) -> None:
        """Write after every scan."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the scans of this iteration, an organ at a time."""
        state: Any = engine.state
        names = {organ: name for name, organ in self.inferer.organ_names().items()}
        for item in state.output:
            volumes = item.get(PROBABILITIES)
            for channel, organ in enumerate([] if volumes is None else organ_ids_of(volumes)):
                one = restore_grid(volumes[channel : channel + 1])
                path = self.folder / name_of(item[IMAGE]) / f"{safe_name(names[organ])}.nii.gz"
                save_nifti(one, path, like=source_of(item[IMAGE]), slope=1 / CERTAIN)
