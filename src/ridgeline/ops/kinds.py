"""The operator kinds, one file each. Adding a kind: one file here and one line below."""

from .activation import ACTIVATION
from .add import ADD
from .attend import ATTEND
from .combine import COMBINE
from .conv import CONV
from .dispatch import DISPATCH
from .embed import EMBED
from .experts import EXPERTS
from .gated_norm import GATED_NORM
from .gather import GATHER
from .head_norm import HEAD_NORM
from .linear import HEAD, LINEAR
from .norm import NORM
from .op import Op
from .rope import ROPE
from .route import ROUTE
from .sample import SAMPLE
from .scan import SCAN

KINDS: dict[str, Op] = {
    op.kind: op
    for op in (
        EMBED, NORM, LINEAR, HEAD_NORM, ROPE, ATTEND, ACTIVATION, ROUTE, DISPATCH, EXPERTS, COMBINE, ADD, GATHER, HEAD,
        SAMPLE, CONV, SCAN, GATED_NORM,
    )
}  # fmt: skip
