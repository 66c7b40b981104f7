"""A training whose best epoch is among the first two is warned of."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from hafvt.training.config import TrainingConfig
from hafvt.training.session import warn_of_early_best
from hafvt.training.trainer import TrainingState


@pytest.mark.parametrize(
    ("best", "epochs", "is_warned"),
    [(1, 1, False), (2, 2, False), (2, 4, True), (1, 12, True), (4, 12, False)],
)
def test_best_epoch_among_the_first_two_is_warned_of(best, epochs, is_warned):
    state = TrainingState(epoch=epochs, best_epochs=[best], best_values=[0.1])
    trainer = SimpleNamespace(state=state, config=TrainingConfig(learning_rate=0.003), optimizer=object())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_early_best(trainer)
        trainer.optimizer = None  # a model without weights has one epoch
        warn_of_early_best(trainer)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == is_warned
    if is_warned:
        assert messages[0].startswith(f"the best epoch is {best} of {epochs}: the model may learn too fast")
        assert "--learning-rate below 0.003" in messages[0]
