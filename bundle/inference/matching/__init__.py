"""Matching: which annotated slices contribute prototypes for each query slice.

    annotated scan -> encode -> encoded scan                once for all queries
    encoded scans  -> pool   -> Support                     once for each query
    Support + features of the query's slices -> scores      slice by slice

``ChunkMatching`` is the paper's; ``SliceMatching`` uses every annotated slice. Both implement ``Matching``, so the
config can swap one for the other.
"""

from bundle.inference.matching.base import Extents, Features, Matching, Support
from bundle.inference.matching.chunks import ChunkMatching
from bundle.inference.matching.slices import SliceMatching

__all__ = ["ChunkMatching", "Extents", "Features", "Matching", "SliceMatching", "Support"]
