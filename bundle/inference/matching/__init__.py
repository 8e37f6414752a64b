"""Matching: which slices of the annotated scans speak for which slice of a query, and what they say.

    annotated scan -> encode -> what is kept of it          once for all queries
    all of those   -> pool   -> Support                     once a query
    Support + features of the query's slices -> scores      slice by slice

``ChunkMatching`` is the paper's; ``SliceMatching`` uses every annotated slice. Both have the signature of ``Matching``,
so the config can swap one for another.
"""

from bundle.inference.matching.base import Extents, Features, Matching, Support
from bundle.inference.matching.chunks import ChunkMatching
from bundle.inference.matching.slices import SliceMatching

__all__ = ["ChunkMatching", "Extents", "Features", "Matching", "SliceMatching", "Support"]
