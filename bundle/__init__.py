"""SSL-ALPNet: few-shot segmentation of medical volumes, learned from superpixels instead of labels.

A volume's way, room by room:

    transforms/   files -> volumes: orientation, spacing, intensity; slices -> superpixels; the two views
    data/         a study's scans, the superpixel cache, episodes, the phantom study
    networks/     images -> features -> prototypes -> similarity -> logits
    losses        logits -> the number that training lowers
    inferers      support scans + query volume -> scores of every organ
    handlers      what happens around a training: progress, checkpoints, log
    reports       what an evaluation leaves: masks, overlays, tables
    monai_label   the same inference behind a MONAI Label server; next_scan tells what to annotate there
"""

__version__ = "0.1.0"
