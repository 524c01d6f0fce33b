"""Named losses, and what has to happen to each of them."""

from named_algebra import ALGEBRA
from named_contrastive import CONTRASTIVE
from named_decisions import DECISIONS
from named_experts import EXPERTS
from named_generative import GENERATIVE
from named_language import LANGUAGE
from named_metrics import METRICS
from named_structures import STRUCTURES
from named_sums import SUMS
from named_supervised import SUPERVISED
from named_tools import Named, make_batch, make_params

TABLES = (
    SUPERVISED,
    SUMS,
    LANGUAGE,
    EXPERTS,
    DECISIONS,
    METRICS,
    CONTRASTIVE,
    GENERATIVE,
    STRUCTURES,
    ALGEBRA,
)
NAMED: dict[str, Named] = {}
for table in TABLES:
    assert not NAMED.keys() & table.keys(), NAMED.keys() & table.keys()
    NAMED |= table

__all__ = ["NAMED", "make_batch", "make_params"]
