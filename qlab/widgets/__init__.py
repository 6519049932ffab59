"""Explorers: ipywidgets around the drawings of `plots`, run by qlab's functions or by the learner's own."""

from qlab.widgets.adapters import LevelsExplorer, RankExplorer
from qlab.widgets.attention import TileExplorer
from qlab.widgets.bills import BillExplorer
from qlab.widgets.checkpointing import TimelineExplorer
from qlab.widgets.loss_scaling import LossScaleExplorer
from qlab.widgets.number_formats import BitExplorer, FormatDesigner
from qlab.widgets.optimizers import MomentExplorer
from qlab.widgets.outliers import OutlierExplorer, RemedyExplorer
from qlab.widgets.quantization import ClipExplorer, GridExplorer
from qlab.widgets.sparsity import SparsityExplorer

__all__ = [
    "BillExplorer",
    "BitExplorer",
    "ClipExplorer",
    "FormatDesigner",
    "GridExplorer",
    "LevelsExplorer",
    "LossScaleExplorer",
    "MomentExplorer",
    "OutlierExplorer",
    "RankExplorer",
    "RemedyExplorer",
    "SparsityExplorer",
    "TileExplorer",
    "TimelineExplorer",
]
