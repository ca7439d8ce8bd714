"""What listens to a run: metrics, figures, the report, and the console. See `tyr/events.py`.

Callbacks only record and show; a run gives the same result without them.
"""

from tyr.callbacks.checkpoint import Checkpoint
from tyr.callbacks.heatmap import SparsityHeatmap
from tyr.callbacks.latency import LatencyTable
from tyr.callbacks.progress import Progress
from tyr.callbacks.report import HtmlReport
from tyr.callbacks.summary import Summary
from tyr.callbacks.tracking import CsvMetrics, WandbTracking

__all__ = [
    "Checkpoint",
    "CsvMetrics",
    "HtmlReport",
    "LatencyTable",
    "Progress",
    "SparsityHeatmap",
    "Summary",
    "WandbTracking",
]
