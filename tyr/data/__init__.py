"""Text sources: each gives disjoint calibration, search and evaluation windows."""

from tyr.data.stdlib import StdlibData
from tyr.data.tokens import SplitSizes, TokenSplits, check_context

__all__ = ["SplitSizes", "StdlibData", "TokenSplits", "check_context"]
