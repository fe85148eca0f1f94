"""The directives: small rewrites of one nest, each with its legality and its text.

One file per family: split (split, cover, peel), order (reorder, fuse, reverse), mark (unroll,
vectorize, parallel, carry, rfactor), pack (pack), unfold (unfold), fold (fold),
collect (collect), stage (compute_at, inline), together (join), partial (partial).
"""

from convgen.schedule.directives.base import Directive
from convgen.schedule.directives.collect import Collect, collect
from convgen.schedule.directives.fold import Fold, fold
from convgen.schedule.directives.mark import (
    Carry,
    Parallel,
    Rfactor,
    Unroll,
    Vectorize,
    carry,
    parallel,
    rfactor,
    unroll,
    vectorize,
)
from convgen.schedule.directives.order import Fuse, Reorder, Reverse, fuse, reorder, reverse
from convgen.schedule.directives.pack import Pack, pack
from convgen.schedule.directives.partial import Partial, partial
from convgen.schedule.directives.split import Cover, Peel, Split, cover, peel, split
from convgen.schedule.directives.stage import ComputeAt, Inline, compute_at, inline
from convgen.schedule.directives.together import Join, join
from convgen.schedule.directives.unfold import Unfold, unfold

__all__ = [
    "Carry",
    "Collect",
    "ComputeAt",
    "Cover",
    "Directive",
    "Fold",
    "Fuse",
    "Inline",
    "Join",
    "Pack",
    "Parallel",
    "Partial",
    "Peel",
    "Reorder",
    "Reverse",
    "Rfactor",
    "Split",
    "Unfold",
    "Unroll",
    "Vectorize",
    "carry",
    "collect",
    "compute_at",
    "cover",
    "fold",
    "fuse",
    "inline",
    "join",
    "pack",
    "parallel",
    "partial",
    "peel",
    "reorder",
    "reverse",
    "rfactor",
    "split",
    "unfold",
    "unroll",
    "vectorize",
]
