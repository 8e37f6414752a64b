"""The dictionary entries that flow, each with its shape: the glossary in code.

Letters: ``B`` episodes of a batch, ``K`` shots, ``C`` channels, ``H``, ``W``, ``Z`` rows, columns and slices.
"""

IMAGE = "image"
"""A volume ``(1, H, W, Z)`` on its way in; in an episode the query's view ``(C, H, W)``."""

LABEL = "label"
"""Organ ids of a volume ``(1, H, W, Z)``, 0 = none; in an episode the query's mask ``(1, H, W)``."""

SUPPORT_IMAGE = "support_image"
"""The support views of an episode, ``(K, C, H, W)``."""

SUPPORT_MASK = "support_mask"
"""Their pseudo-label in {0, 1}, ``(K, 1, H, W)``."""

SUPERPIXELS = "superpixels"
"""Superpixel ids of a volume ``(1, H, W, Z)``, 0 = outside the body."""

PRED = "pred"
"""Organ scores of a volume ``(O, H, W, Z)``, then its label map ``(1, H, W, Z)``."""

ORGAN_IDS = "organ_ids"
"""In the meta of scores: the ids of their channels' organs, ``(O,)``."""

SUPPORT = "support"
"""In the meta of an image: the files of the annotated scans to segment it from, where they are not the config's."""

NETWORK_LABEL = "network_label"
"""A predicted label map ``(1, H, W, Z)`` still on the network's grid, for pictures."""

EXPLAINED = "explained"
"""In the meta of scores: how similar the body is to its nearest prototypes, in logits, ``(1,)``."""

PRED_MASKS = "pred_masks"
"""One predicted mask an organ ``(O, H, W, Z)`` in {0, 1}, on the network's grid, for metrics."""

QUALITY = "quality"
"""In the meta of scores: how good each organ's mask is by the network's own estimate, ``(O,)``."""

SUPPORT_COMPONENTS = "support_components"
"""In the meta of scores: in how many parts each organ comes in the annotated scans, ``(O,)``."""

SUPPORT_MILLILITERS = "support_milliliters"
"""In the meta of scores: the smallest and largest volume of each organ in the annotated scans, ``(O, 2)``, or NaN."""

INTENSITY_DISTANCE = "intensity_distance"
"""In the meta of scores: how unlike the annotated scans' the intensities are, in standard deviations, ``(1,)``."""

NOTICES = "notices"
"""In the meta of scores: what makes masks doubtful, a list of sentences by organ id; id 0 is the whole scan."""

ORGAN_NAMES = "organ_names"
"""In the meta of a label map: the names of its ids, ``{id: name}``, where its file tells them."""

PROBLEM = "problem"
"""Alone in a scan's entry: what is wrong with a scan that cannot be read, a sentence."""
