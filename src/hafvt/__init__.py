"""hafvt: recommend across domains, with pictures and titles.

The functions behind the commands, each with the command's name and arguments. Each is imported on first use,
so that what does not need torch starts without it.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hafvt.data.dataset import Dataset as Dataset
    from hafvt.data.info import info as info
    from hafvt.data.prepare import prepare as prepare
    from hafvt.data.sources.amazon import prepare_amazon as prepare_amazon
    from hafvt.data.sources.c2dsr import prepare_c2dsr as prepare_c2dsr
    from hafvt.data.sources.fetch import fetch as fetch
    from hafvt.data.table_options import TableOptions as TableOptions
    from hafvt.errors import HafvtError as HafvtError
    from hafvt.errors import InputError as InputError
    from hafvt.experiments.backtest import backtest as backtest
    from hafvt.experiments.compare import ablate as ablate
    from hafvt.experiments.compare import compare as compare
    from hafvt.experiments.demo import demo as demo
    from hafvt.experiments.doctor import doctor as doctor
    from hafvt.experiments.evaluate import evaluate as evaluate
    from hafvt.experiments.fit import fit as fit
    from hafvt.experiments.paper import paper as paper
    from hafvt.experiments.rerank_curve import rerank_curve as rerank_curve
    from hafvt.experiments.tune import tune as tune
    from hafvt.features.encode import encode as encode
    from hafvt.inference.ann import index as index
    from hafvt.inference.batch import recommend as recommend
    from hafvt.inference.catalog_add import catalog as catalog
    from hafvt.inference.explain import explain as explain
    from hafvt.inference.onnx_export import export as export
    from hafvt.inference.recommender import Recommender as Recommender
    from hafvt.inference.similar import similar_items as similar_items
    from hafvt.inference.vectors import vectors as vectors
    from hafvt.models.base import Model as Model
    from hafvt.models.hyperparameters import ModelConfig as ModelConfig
    from hafvt.server.serve import serve as serve
    from hafvt.training.callbacks import Callback as Callback
    from hafvt.training.push import push as push
    from hafvt.training.run import Run as Run
    from hafvt.training.train import train as train

    __version__: str

# OpenMP, which torch loads, reads this: its idle threads sleep instead of occupying processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MODULES = {
    "Callback": "hafvt.training.callbacks",
    "Dataset": "hafvt.data.dataset",
    "HafvtError": "hafvt.errors",
    "InputError": "hafvt.errors",
    "Model": "hafvt.models.base",
    "ModelConfig": "hafvt.models.hyperparameters",
    "Recommender": "hafvt.inference.recommender",
    "Run": "hafvt.training.run",
    "TableOptions": "hafvt.data.table_options",
    "ablate": "hafvt.experiments.compare",
    "backtest": "hafvt.experiments.backtest",
    "catalog": "hafvt.inference.catalog_add",
    "compare": "hafvt.experiments.compare",
    "demo": "hafvt.experiments.demo",
    "doctor": "hafvt.experiments.doctor",
    "encode": "hafvt.features.encode",
    "evaluate": "hafvt.experiments.evaluate",
    "explain": "hafvt.inference.explain",
    "export": "hafvt.inference.onnx_export",
    "fetch": "hafvt.data.sources.fetch",
    "fit": "hafvt.experiments.fit",
    "index": "hafvt.inference.ann",
    "info": "hafvt.data.info",
    "paper": "hafvt.experiments.paper",
    "prepare": "hafvt.data.prepare",
    "prepare_amazon": "hafvt.data.sources.amazon",
    "prepare_c2dsr": "hafvt.data.sources.c2dsr",
    "push": "hafvt.training.push",
    "recommend": "hafvt.inference.batch",
    "rerank_curve": "hafvt.experiments.rerank_curve",
    "serve": "hafvt.server.serve",
    "similar_items": "hafvt.inference.similar",
    "train": "hafvt.training.train",
    "tune": "hafvt.experiments.tune",
    "vectors": "hafvt.inference.vectors",
}
"""The module of each public name."""

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name == "__version__":
        return version("hafvt")
    if name not in MODULES:
        raise AttributeError(f"module 'hafvt' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the names of this module, with those that are not imported yet."""
    return sorted({*globals(), *MODULES})
