"""MONAI Label: where a request finds its annotated scans, and what its answer says.

    FindSupportd  ->  (preprocessing)  ->  CarrySupportd  ->  AnsweringInferer  ->  AnswerOfScoresd  ->  AnswerOfLabeld

The stock ``monaibundle`` app runs this bundle's ``preprocessing``, ``inferer`` and ``postprocessing`` for each request
(docs/monai_label.md). Outside of that server everything here stands aside.
"""

from bundle.monai_label.answers import AnswerOfLabeld, AnswerOfScoresd
from bundle.monai_label.datastore import training_mode, unlabeled_scans
from bundle.monai_label.inferer import AnsweringInferer
from bundle.monai_label.query import ExplainedTransforms
from bundle.monai_label.support import CarrySupportd, FindSupportd

__all__ = [
    "AnswerOfLabeld",
    "AnswerOfScoresd",
    "AnsweringInferer",
    "CarrySupportd",
    "ExplainedTransforms",
    "FindSupportd",
    "training_mode",
    "unlabeled_scans",
]
