"""An optimizer that trains each branch with its own algorithm, as in the paper: Adam for the CQT backbone and the
head, RAdam for the Mel backbone. A speech encoder and learnable Mel filters can have their own algorithms, too."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

if TYPE_CHECKING:
    from modeling_maxmvit import MaxMViTForAudioClassification

ALGORITHMS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
HEAD = "head"  # the branch of all parameters outside the model's `pretrained_parts`
FILTER = "filter"  # the branch of its learnable filters
FUSED = {"adam", "adamw", "sgd"}


class BranchOptimizer(torch.optim.Optimizer):
    """
    A single optimizer whose parameter groups each name the algorithm that updates them. The arithmetic is torch's: for
    each algorithm, an optimizer of torch steps the groups on the state of this optimizer.

    Groups and state are passed to these optimizers at every step, since accelerate replaces them by a round trip
    through `load_state_dict`, and FSDP2 exchanges the parameters.

    Args:
        groups (iterable of `dict`):
            Parameter groups. Each has `params`, `algorithm` (a key of `ALGORITHMS`), and arguments of that algorithm
            (`lr`, `weight_decay`, `betas`, ...); missing values are torch's defaults. Further keys are kept.
        fused (`bool`, *optional*):
            Whether to use torch's fused kernels if an algorithm has them; by default if all parameters are on a GPU.

    Raises:
        ValueError: The algorithm of a group is unknown, or a parameter is in two groups.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], fused: bool | None = None):
        groups = [dict(group) for group in groups]
        for group in groups:
            if group.get("algorithm") not in ALGORITHMS:
                raise ValueError(
                    f"Unknown optimizer {group.get('algorithm')!r}: choose one of {', '.join(ALGORITHMS)}."
                )
        super().__init__(groups, defaults={})
        if fused is None:
            fused = all(p.device.type == "cuda" for group in self.param_groups for p in group["params"])
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, own in self._by_algorithm().items():
            options: dict[str, Any] = {"fused": True} if fused and name in FUSED else {}
            self._optimizers[name] = ALGORITHMS[name](own, **options)
            for group, completed in zip(own, self._optimizers[name].param_groups, strict=True):
                group.update(completed)

    def _by_algorithm(self) -> dict[str, list[dict[str, Any]]]:
        names = dict.fromkeys(group["algorithm"] for group in self.param_groups)
        return {name: [group for group in self.param_groups if group["algorithm"] == name] for name in names}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns the loss of the closure if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, groups in self._by_algorithm().items():
            optimizer = self._optimizers[name]
            optimizer.param_groups, optimizer.state = groups, self.state
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Restores a `state_dict` of the same groups.

        Raises:
            ValueError: The groups differ, or were updated with other algorithms.
        """
        saved = [group.get("algorithm") for group in state_dict["param_groups"]]
        own = [group["algorithm"] for group in self.param_groups]
        if saved != own:
            raise ValueError(
                f"The saved optimizer has groups updated by {saved}, this one by {own}: start a new run instead."
            )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_optimizers": self._optimizers}


def branch_parameter_groups(
    model: "MaxMViTForAudioClassification",
    algorithms: dict[str, str],
    learning_rates: dict[str, float],
    weight_decays: dict[str, float],
    layer_decay: float = 1.0,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Returns groups for [`BranchOptimizer`] that cover every trainable parameter of a MaxMViT classifier once.

    Args:
        model ([`MaxMViTForAudioClassification`]): The model. Parameters of its `branches()` that are in its
            `pretrained_parts()` are trained by branch, all others like the head.
        algorithms, learning_rates, weight_decays (`dict` with the keys of `model.branches()`, `head`, and `filter` for
            a model with learnable filters): Settings of each branch. Weight decay is not applied to norms, biases and
            relative-position tables.
        layer_decay (`float`, defaults to 1.0):
            Factor between the learning rates of a backbone stage and the one before it, counted from the last (timm's
            `group_matcher` assigns parameters to stages). It does not apply to the head.
        options: Further values for every group, such as `betas` and `eps`.

    Raises:
        ValueError: A branch of the model has no algorithm, learning rate or weight decay.
    """
    branches, filters = model.branches(), model.base_model.filter_bank
    for given in (algorithms, learning_rates, weight_decays):
        if lacking := {*branches, HEAD, *([FILTER] if filters else [])} - set(given):
            raise ValueError(
                f"There are no settings for the branch {', '.join(sorted(lacking))}: SERTrainingArguments has an "
                f"optimizer, a learning rate and a weight decay for {', '.join(given)}; add them."
            )
    pretrained = {id(p) for part in model.pretrained_parts().values() for p in part.parameters()}
    parts: list[tuple[str, float, float, list[nn.Parameter]]] = []
    if filters is not None:
        trained = [parameter for parameter in filters.parameters() if parameter.requires_grad]
        parts.append((FILTER, 1.0, weight_decays[FILTER], trained))
        pretrained |= {id(p) for p in trained}
    for branch, backbone in branches.items():
        spared = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
        for group in param_groups_layer_decay(
            backbone, weight_decays[branch], no_weight_decay_list=spared, layer_decay=layer_decay
        ):
            own = [parameter for parameter in group["params"] if id(parameter) in pretrained]
            parts.append((branch, group["lr_scale"], group["weight_decay"], own))
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in pretrained:
            parts.append((HEAD, 1.0, weight_decays[HEAD] if parameter.ndim > 1 else 0.0, [parameter]))

    merged: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for branch, scale, weight_decay, parameters in parts:
        merged.setdefault((branch, scale, weight_decay), []).extend(parameters)
    groups = [
        {
            "params": parameters,
            "branch": branch,
            "algorithm": algorithms[branch],
            "lr": learning_rates[branch] * scale,
            "weight_decay": weight_decay,
            **options,
        }
        for (branch, scale, weight_decay), parameters in merged.items()
        if parameters
    ]
    grouped = sorted(id(p) for group in groups for p in group["params"])
    trainable = sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert grouped == trainable, f"{len(grouped)} grouped parameters are not the {len(trainable)} trainable ones"
    return groups
