"""The entries of data dictionaries, each with its shape: the glossary in code.

Letters: ``B`` episodes of a batch, ``K`` shots, ``C`` channels, ``O`` organs, ``H``, ``W``, ``Z`` rows, columns
and slices.
"""

# An input volume ``(1, H, W, Z)``; in an episode the query's view ``(C, H, W)``.
IMAGE = "image"

# Organ ids of a volume ``(1, H, W, Z)``, 0 = none; in an episode the query's mask ``(1, H, W)``.
LABEL = "label"

# The support views of an episode, ``(K, C, H, W)``.
SUPPORT_IMAGE = "support_image"

# The pseudo-label of each support view in {0, 1}, ``(K, 1, H, W)``.
SUPPORT_MASK = "support_mask"

# Superpixel ids of a volume ``(1, H, W, Z)``, 0 = outside the body.
SUPERPIXELS = "superpixels"

# Organ scores of a volume ``(O, H, W, Z)``, then its label map ``(1, H, W, Z)``.
PRED = "pred"

# In the meta of scores: the organ id of each channel, ``(O,)``.
ORGAN_IDS = "organ_ids"

# In the meta of an image: the files of its own annotated scans, used in place of the config's.
SUPPORT = "support"

# In the meta of an image that is a DICOM series: its files, in the order of the slices.
SERIES = "series"

# In the entry of a scan, and in the meta of its image: its name, where its file's name does not tell it.
SCAN_NAME = "name"

# A predicted label map ``(1, H, W, Z)`` on the network's grid, for pictures.
NETWORK_LABEL = "network_label"

# In the meta of scores: how similar the body is to its nearest prototypes, in logits, ``(1,)``.
EXPLAINED = "explained"

# One predicted mask an organ ``(O, H, W, Z)`` in {0, 1}, on the network's grid, for metrics.
PRED_MASKS = "pred_masks"

# Probabilities of the organs ``(O, H, W, Z)``, uint8 from 0 to 255, on the network's grid.
PROBABILITIES = "probabilities"

# In the meta of scores: the network's own estimate of how good each organ's mask is, ``(O,)``.
QUALITY = "quality"

# In the meta of scores: a point of each organ's axial slice of the lowest confidence, RAS, mm, and that confidence,
# ``(O, 4)``; NaN where there is none.
LEAST_CONFIDENT = "least_confident"

# In the meta of scores: the number of components of each organ in the annotated scans, ``(O,)``.
SUPPORT_COMPONENTS = "support_components"

# In the meta of scores: each organ's smallest and largest volume in the annotated scans, ml, ``(O, 2)``; or NaN.
SUPPORT_MILLILITERS = "support_milliliters"

# In the meta of scores: the mean thickness of each organ in the annotated scans' slices, pixels, ``(O,)``; or NaN.
SUPPORT_THICKNESS = "support_thickness"

# In the meta of scores: distance of the intensities to the annotated scans', in standard deviations, ``(1,)``.
INTENSITY_DISTANCE = "intensity_distance"

# In the meta of scores: warnings about the masks, a list of sentences by organ id; id 0 is the whole scan.
NOTICES = "notices"

# In the meta of a label map: the names of its ids, ``{id: name}``, where its file states them.
ORGAN_NAMES = "organ_names"

# In the meta of a label map: true if it lies on a grid of its own and not on its image's.
OWN_GRID = "own_grid"

# The only entry of a scan that cannot be read: what is wrong with it, in one sentence.
PROBLEM = "problem"
