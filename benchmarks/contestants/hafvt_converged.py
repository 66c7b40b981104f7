"""A model of ours, by `hafvt train`'s own loop.

Settings: `model`, `params` of the model, `max_length` and arguments of `hafvt train`. Models that count
interactions read no histories or whole ones, and have no `max_length`.
"""

from __future__ import annotations

from importlib.metadata import version

from convergence import TrainingCurve, read_trial

from hafvt import train
from hafvt.models import MODELS
from hafvt.training.trainer import Trainer


def main() -> None:
    trial = read_trial()
    settings = dict(trial.settings)
    max_length = settings.pop("max_length")
    if MODELS[settings["model"]].has_weights:
        settings["params"] = {**settings["params"], "max_length": max_length}
    curve = TrainingCurve(trial)
    validate = Trainer.validate

    def validate_and_add(trainer: Trainer) -> dict[str, float]:
        curve.pause()
        metrics = validate(trainer)
        if curve.add(metrics["valid_mrr"], trainer.state.epoch):
            trainer.epochs = trainer.state.epoch
        return metrics

    Trainer.validate = validate_and_add  # type: ignore[method-assign]
    run = train(
        data=trial.data,
        out=trial.out / "run",
        epochs=trial.epochs,
        validate_every=1,
        patience=0,  # the curve ends the training
        candidates="unseen",
        test=False,
        **settings,
    )
    curve.write(run.model, f"hafvt {version('hafvt')}")


if __name__ == "__main__":
    main()
