import copy
import io

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ser.training.optimizer import ALGORITHMS, BranchOptimizer, branch_parameter_groups
from tests.helpers.tiny import convnet_model, tiny_images, tiny_model

PAPER = {"cqt": "adam", "mel": "radam", "head": "adam"}
RATES = {"cqt": 1e-3, "mel": 2e-3, "head": 5e-3}
NO_DECAY = dict.fromkeys(PAPER, 0.0)


def make_optimizer(model, algorithms=PAPER, rates=RATES, decays=NO_DECAY, **kwargs):
    return BranchOptimizer(branch_parameter_groups(model, algorithms, rates, decays, **kwargs))


def two_torch_optimizers(model, **kwargs):
    adam = torch.optim.Adam(
        [
            {"params": model.maxmvit.cqt_backbone.parameters(), "lr": RATES["cqt"]},
            {"params": model.classifier.parameters(), "lr": RATES["head"]},
        ],
        **kwargs,
    )
    return adam, torch.optim.RAdam(model.maxmvit.mel_backbone.parameters(), lr=RATES["mel"], **kwargs)


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("round_trip", "model_of"),
    [(None, tiny_model), ("same object", convnet_model), ("new object", convnet_model), ("deep copy", convnet_model)],
)
def test_twenty_steps_equal_two_torch_optimizers(round_trip, model_of):
    ours = model_of(hidden_dropout=0.0).train()
    theirs = copy.deepcopy(ours)
    optimizer, plain = make_optimizer(ours), two_torch_optimizers(theirs)
    for step in range(20):
        batch = tiny_images(4, seed=step)
        labels = torch.randint(4, (4,), generator=torch.Generator().manual_seed(step))
        for model, optimizers in ((ours, [optimizer]), (theirs, plain)):
            cross_entropy(model(**batch).logits, labels).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            for each in optimizers:
                each.step()
                each.zero_grad()
        if step == 9 and round_trip == "deep copy":
            ours, optimizer = copy.deepcopy((ours, optimizer))
        elif step == 9 and round_trip is not None:
            state = saved_and_loaded(optimizer.state_dict())
            optimizer = optimizer if round_trip == "same object" else make_optimizer(ours)
            optimizer.load_state_dict(state)
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_equals_that_of_torch_and_follows_a_scheduler(algorithm):
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3)
    theirs = copy.deepcopy(ours)
    pairs = (
        (
            ours,
            BranchOptimizer([{"params": ours.parameters(), "algorithm": algorithm, "lr": 0.1, "weight_decay": 0.01}]),
        ),
        (theirs, ALGORITHMS[algorithm](theirs.parameters(), lr=0.1, weight_decay=0.01)),
    )
    for model, optimizer in pairs:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
        for step in range(8):
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            optimizer.step(lambda model=model, x=x: model(x).square().sum().backward())
            scheduler.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert pairs[0][1].param_groups[0]["lr"] == pairs[1][1].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_fused_kernels_agree_with_the_plain_ones():
    torch.manual_seed(0)
    models = [torch.nn.Linear(5, 3)]
    models.append(copy.deepcopy(models[0]))
    for model, fused in zip(models, (False, True), strict=True):
        groups = [
            {"params": [model.weight], "algorithm": "adam", "lr": 0.01},
            {"params": [model.bias], "algorithm": "radam", "lr": 0.01},
        ]
        optimizer = BranchOptimizer(groups, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) is fused and "fused" not in optimizer.param_groups[1]
        for step in range(5):
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    torch.testing.assert_close(models[0].weight, models[1].weight)


@pytest.mark.slow
def test_the_rosenbrock_function_is_minimised():
    x, y = torch.nn.Parameter(torch.tensor(-1.2)), torch.nn.Parameter(torch.tensor(1.0))
    groups = [{"params": [x], "algorithm": "adam", "lr": 0.01}, {"params": [y], "algorithm": "radam", "lr": 0.01}]
    optimizer = BranchOptimizer(groups)
    for _ in range(3000):
        optimizer.zero_grad()
        height = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        height.backward()
        optimizer.step()
    assert height.item() < 0.01 and x.item() == pytest.approx(1, abs=0.1)


def test_groups_contain_every_trainable_parameter_once_with_its_weight_decay():
    model = tiny_model()
    model.maxmvit.mel_backbone.patch_embed.requires_grad_(False)
    decays = {"cqt": 0.1, "mel": 0.2, "head": 0.3}
    groups = branch_parameter_groups(model, PAPER, RATES, decays, layer_decay=0.5)
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    branch_of = {id(p): group["branch"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay_of)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in decay_of
            continue
        branch = "cqt" if "cqt_backbone" in name else "mel" if "mel_backbone" in name else "head"
        assert branch_of[id(parameter)] == branch, name
        exempt = parameter.ndim <= 1 or "rel_pos" in name
        assert decay_of[id(parameter)] == (0.0 if exempt else decays[branch]), name
    assert any("relative_position_bias_table" in name for name, _ in model.named_parameters())


def test_without_weight_decay_there_is_one_group_per_branch():
    groups = branch_parameter_groups(tiny_model(), PAPER, RATES, NO_DECAY)
    assert [(g["branch"], g["algorithm"], g["lr"]) for g in groups] == [(b, PAPER[b], RATES[b]) for b in PAPER]


def test_an_additional_branch_is_trained_with_its_own_settings():
    model = tiny_model()
    branches = model.branches()
    model.branches = lambda: {**branches, "dense": model.classifier.dense}
    settings = [PAPER | {"dense": "sgd"}, RATES | {"dense": 0.5}, NO_DECAY | {"dense": 0.1}]
    groups = {group["branch"]: group for group in branch_parameter_groups(model, *settings) if group["weight_decay"]}
    (dense,) = groups.values()
    assert (dense["algorithm"], dense["lr"]) == ("sgd", 0.5) and dense["params"] == [model.classifier.dense.weight]
    with pytest.raises(ValueError, match="no settings for the branch dense: .* for cqt, mel, head"):
        branch_parameter_groups(model, PAPER, RATES, NO_DECAY)


def test_layer_decay_lowers_the_rate_stage_by_stage():
    model = tiny_model()
    groups = branch_parameter_groups(model, PAPER, RATES, NO_DECAY, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for branch in ("cqt", "mel"):
        backbone = getattr(model.maxmvit, f"{branch}_backbone")
        stages = [{rate[id(p)] for p in stage.parameters()} for stage in backbone.stages]
        assert all(len(rates) == 1 for rates in stages)
        rates = [stage.pop() for stage in stages]
        assert rates == [pytest.approx(rates[-1] * 0.5 ** (3 - i)) for i in range(4)]
        assert max(rate[id(p)] for p in backbone.parameters()) == RATES[branch]
        assert min(rate[id(p)] for p in backbone.parameters()) == pytest.approx(rates[0] / 2)
    assert {rate[id(p)] for p in model.classifier.parameters()} == {RATES["head"]}


def test_invalid_groups_and_states_are_refused():
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="'adamm'.*radam"):
        BranchOptimizer([{"params": [weight], "algorithm": "adamm"}])
    with pytest.raises(ValueError, match="more than one parameter group"):
        BranchOptimizer([{"params": [weight], "algorithm": "adam"}, {"params": [weight], "algorithm": "radam"}])
    saved = BranchOptimizer([{"params": [weight], "algorithm": "adam"}]).state_dict()
    with pytest.raises(ValueError, match=r"\['adam'\].*\['radam'\]"):
        BranchOptimizer([{"params": [weight], "algorithm": "radam"}]).load_state_dict(saved)
