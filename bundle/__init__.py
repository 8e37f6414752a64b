"""SSL-ALPNet: few-shot segmentation of medical volumes, learned from superpixels instead of labels.

A volume's way, room by room:

    prepare/      downloads -> folders of volumes and label maps
    transforms/   files -> volumes: orientation, spacing, intensity; slices -> superpixels, views; scores -> masks
    data/         a study's scans, the superpixel cache, episodes, the phantom study
    networks/     images -> features -> prototypes -> similarity -> logits
    losses        logits -> the number that training lowers
    matching/     annotated slices -> which of them speak for which slice of a query
    features      the features of a volume's slices, of a large one in a file
    prototype_files   what an annotated scan tells, as a file
    inferers      support scans + query volume -> scores of every organ
    handlers      what happens around a training: progress, checkpoints, log
    reports       what an evaluation leaves: masks, overlays, tables
    cases         each organ of each scan compared by metrics -> cases.csv, and report_page, to look at
    cross_validation/   all folds, settings and seeds -> one table
    ranks         what several processes of one run do together; resume, what an inference has done already
    export        encoder and segmenter as ONNX and TorchScript
    benchmark/    how fast and how large all this is on a machine
    next_scan     which scan to annotate next; annotation_order, what that order is worth
    monai_label   the same inference behind a MONAI Label server
"""

__version__ = "0.4.0"
