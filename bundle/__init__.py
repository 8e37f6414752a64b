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
``distributed`` (several processes) and ``root`` (the folders of configs and weights).
"""

__version__ = "0.5.0"
