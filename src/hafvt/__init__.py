"""hafvt: recommend across domains, with pictures and titles.

The functions behind the commands, each with the command's name and arguments.
"""

from hafvt.data.dataset import Dataset
from hafvt.data.info import info
from hafvt.data.prepare import prepare
from hafvt.data.sources.c2dsr import prepare_c2dsr
from hafvt.errors import HafvtError, InputError
from hafvt.experiments.demo import demo
from hafvt.experiments.doctor import doctor
from hafvt.experiments.evaluate import evaluate
from hafvt.experiments.paper import paper
from hafvt.features.encode import encode
from hafvt.training.loop import train

__all__ = [
    "Dataset",
    "HafvtError",
    "InputError",
    "demo",
    "doctor",
    "encode",
    "evaluate",
    "info",
    "paper",
    "prepare",
    "prepare_c2dsr",
    "train",
]
