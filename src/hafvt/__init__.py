"""hafvt: recommend across domains, with pictures and titles.

The functions behind the commands, each with the command's name and arguments. They are imported when they are
first asked for: what does not need torch starts without it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hafvt.data.dataset import Dataset
    from hafvt.data.info import info
    from hafvt.data.prepare import prepare
    from hafvt.data.sources.amazon import prepare_amazon
    from hafvt.data.sources.c2dsr import prepare_c2dsr
    from hafvt.data.sources.fetch import fetch
    from hafvt.errors import HafvtError, InputError
    from hafvt.experiments.compare import ablate, compare
    from hafvt.experiments.demo import demo
    from hafvt.experiments.doctor import doctor
    from hafvt.experiments.evaluate import evaluate
    from hafvt.experiments.paper import paper
    from hafvt.experiments.tune import tune
    from hafvt.features.encode import encode
    from hafvt.inference.ann import index
    from hafvt.inference.batch import recommend
    from hafvt.inference.catalog_add import catalog
    from hafvt.inference.explain import explain
    from hafvt.inference.onnx_export import export
    from hafvt.inference.recommender import Recommender
    from hafvt.server.serve import serve
    from hafvt.training.train import train

# Threads that wait for others sleep instead of spinning: beside other work on the machine spinning took four
# times the processor time, and slowed the others. OpenMP reads this when torch is loaded; what is set stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = [
    "Dataset",
    "HafvtError",
    "InputError",
    "Recommender",
    "ablate",
    "catalog",
    "compare",
    "demo",
    "doctor",
    "encode",
    "evaluate",
    "explain",
    "export",
    "fetch",
    "index",
    "info",
    "paper",
    "prepare",
    "prepare_amazon",
    "prepare_c2dsr",
    "recommend",
    "serve",
    "train",
    "tune",
]

HOMES = {
    "Dataset": "hafvt.data.dataset",
    "HafvtError": "hafvt.errors",
    "InputError": "hafvt.errors",
    "Recommender": "hafvt.inference.recommender",
    "ablate": "hafvt.experiments.compare",
    "catalog": "hafvt.inference.catalog_add",
    "compare": "hafvt.experiments.compare",
    "demo": "hafvt.experiments.demo",
    "doctor": "hafvt.experiments.doctor",
    "encode": "hafvt.features.encode",
    "evaluate": "hafvt.experiments.evaluate",
    "explain": "hafvt.inference.explain",
    "export": "hafvt.inference.onnx_export",
    "fetch": "hafvt.data.sources.fetch",
    "index": "hafvt.inference.ann",
    "info": "hafvt.data.info",
    "paper": "hafvt.experiments.paper",
    "prepare": "hafvt.data.prepare",
    "prepare_amazon": "hafvt.data.sources.amazon",
    "prepare_c2dsr": "hafvt.data.sources.c2dsr",
    "recommend": "hafvt.inference.batch",
    "serve": "hafvt.server.serve",
    "train": "hafvt.training.train",
    "tune": "hafvt.experiments.tune",
}


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__`."""
    if name not in HOMES:
        raise AttributeError(f"module 'hafvt' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """Returns the names that are there or can be had."""
    return sorted({*globals(), *__all__})
