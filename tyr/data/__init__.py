"""Text sources: each gives disjoint calibration, search and evaluation windows."""

from tyr.data.files import TextFileData
from tyr.data.hub import HubData, HubText
from tyr.data.stdlib import StdlibData
from tyr.data.tokens import SplitSizes, TokenSplits, check_context

__all__ = [
    "HubData",
    "HubText",
    "SplitSizes",
    "StdlibData",
    "TextFileData",
    "TokenSplits",
    "check_context",
]
