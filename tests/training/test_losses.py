import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from ser.training.losses import ClassificationLoss, class_weights

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 1, 1])
SOFT = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_plain_loss_equals_the_cross_entropy_of_torch(labels, smoothing):
    loss = ClassificationLoss(label_smoothing=smoothing)(LOGITS, labels)
    torch.testing.assert_close(loss, cross_entropy(LOGITS, labels, label_smoothing=smoothing))


def test_the_weighted_loss_equals_that_of_torch_up_to_the_divisor():
    weights = torch.tensor([0.5, 2.0, 1.0, 1.5])
    loss = ClassificationLoss(weights)(LOGITS, LABELS)
    torch.testing.assert_close(loss, cross_entropy(LOGITS, LABELS, weights, reduction="sum") / len(LABELS))
    halves = (
        ClassificationLoss(weights)(LOGITS[:3], LABELS[:3]) + ClassificationLoss(weights)(LOGITS[3:], LABELS[3:])
    ) / 2
    torch.testing.assert_close(halves, loss)


def test_hard_labels_equal_their_one_hot_probabilities():
    loss = ClassificationLoss(torch.tensor([0.5, 2.0, 1.0, 1.5]), label_smoothing=0.2, focal_gamma=2.0)
    torch.testing.assert_close(loss(LOGITS, LABELS), loss(LOGITS, one_hot(LABELS, 4).float()))


def test_the_focal_loss_follows_its_formula():
    p = torch.softmax(LOGITS, dim=1)[range(6), LABELS]
    torch.testing.assert_close(ClassificationLoss(focal_gamma=2.0)(LOGITS, LABELS), -((1 - p) ** 2 * p.log()).mean())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_saturated_logits_has_a_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0, 0.0], [200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    ClassificationLoss(focal_gamma=gamma)(logits, torch.tensor([0, 1])).backward()
    assert logits.grad[0].abs().max() < 1e-3
    torch.testing.assert_close(logits.grad[1], torch.tensor([0.5, -0.5, 0.0, 0.0]))


def test_class_weights_balance_the_classes():
    labels = torch.tensor([0] * 6 + [1] * 2 + [3] * 4)
    weights = class_weights(labels, 4)
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))
    totals = weights * torch.bincount(labels, minlength=4)
    torch.testing.assert_close(totals, torch.tensor([4.0, 4.0, 0.0, 4.0]))


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="class 3"):
        class_weights(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="label_smoothing"):
        ClassificationLoss(label_smoothing=1.0)
    with pytest.raises(ValueError, match="focal_gamma"):
        ClassificationLoss(focal_gamma=-1.0)
