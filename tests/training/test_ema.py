import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_maxmvit import MaxMViTForAudioClassification
from ser.training.ema import UNAVERAGED, AveragedWeights
from ser.utils import DataError
from tests.helpers.tiny import convnet_model
from tests.helpers.training import QUIET, Poisoned, assert_same_weights, evaluations, make_trainer, weights

DECAY = 0.8


class AverageByFormula(TrainerCallback):
    """Computes the average by its formula, in float64, after every step."""

    def __init__(self):
        self.averages, self.last = [], None

    def on_step_end(self, args, state, control, model, **kwargs):
        self.last = {
            name: value.double() if value.is_floating_point() else value for name, value in weights(model).items()
        }
        average = self.last
        if self.averages:
            average = {
                name: DECAY * self.averages[-1][name] + (1 - DECAY) * value if value.is_floating_point() else value
                for name, value in self.last.items()
            }
        self.averages.append(average)


def assert_near(model, average):
    for name, value in weights(model).items():
        torch.testing.assert_close(value.to(average[name].dtype), average[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_after_twenty_steps_the_model_has_the_average_of_the_formula(tmp_path):
    reference = AverageByFormula()
    trainer = make_trainer(tmp_path, ema_decay=DECAY, max_steps=20, callbacks=[reference], **QUIET)
    trainer.train()
    assert len(reference.averages) == 20
    assert_near(trainer.model, reference.averages[-1])
    name = "classifier.dense.weight"
    assert (reference.last[name] - reference.averages[-1][name]).abs().max() > 1e-4
    assert int(trainer.model.classifier.norm.num_batches_tracked) == 20


@pytest.mark.slow
def test_the_average_is_evaluated_and_saved_and_the_last_weights_are_trained(tmp_path):
    reference = AverageByFormula()
    trainer = make_trainer(tmp_path, ema_decay=DECAY, num_train=8, callbacks=[reference], metric_for_best_model="loss")
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        saved = MaxMViTForAudioClassification.from_pretrained(folder)
        assert_near(saved, reference.averages[step - 1])
        assert make_trainer(tmp_path, model=saved).evaluate()["eval_loss"] == pytest.approx(losses[step], rel=1e-5)
        assert not torch.equal(
            load_file(folder / UNAVERAGED)["classifier.dense.weight"], saved.classifier.dense.weight
        )
    assert_same_weights(
        weights(trainer.model),
        load_file(tmp_path / f"checkpoint-{trainer.state.best_global_step}" / "model.safetensors"),
    )


@pytest.mark.slow
def test_a_resumed_run_continues_the_average_exactly(tmp_path):
    settings = {"ema_decay": DECAY, "num_train": 8, "channels_last": True}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **settings, model=convnet_model(seed=5))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert evaluations(whole) == evaluations(resumed)
    for name in ("model.safetensors", UNAVERAGED):
        ends = [load_file(tmp_path / run / "checkpoint-6" / name) for run in ("whole", "resumed")]
        assert_same_weights(*ends)
    with pytest.raises(DataError, match="checkpoint-2 holds averaged weights: add --ema_decay"):
        make_trainer(tmp_path / "plain", num_train=8).train(str(tmp_path / "whole" / "checkpoint-2"))


@pytest.mark.slow
def test_a_skipped_step_is_not_averaged(tmp_path):
    ends = []
    for poisoned in ((), (3,)):
        model = convnet_model(hidden_dropout=0.0)
        settings = {"num_train": 4, "max_steps": 2 + len(poisoned), "skip_nonfinite_steps": 1}
        trainer = make_trainer(tmp_path, model=model, ema_decay=DECAY, **settings, **QUIET)
        trainer.train_collator = Poisoned(*poisoned)
        trainer.train()
        ends.append(weights(model))
    assert_same_weights(*ends)


def test_only_floating_point_values_are_averaged(tmp_path):
    model = torch.nn.BatchNorm1d(2)
    before = copy.deepcopy(model.state_dict())
    average = AveragedWeights(model, 0.5)
    average.update()
    model(torch.randn(8, 2))
    average.update()
    last = copy.deepcopy(model.state_dict())
    with average.applied(), average.applied():
        assert model.num_batches_tracked == 1
        torch.testing.assert_close(model.running_var, 0.5 * before["running_var"] + 0.5 * last["running_var"])
    assert_same_weights(last, model.state_dict())
    assert not torch.equal(model.running_mean, before["running_mean"])
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        AveragedWeights(model, 1.0)
    with pytest.raises(ValueError, match="ema_decay 1.5 does not work: it must be"):
        make_trainer(tmp_path, ema_decay=1.5)
