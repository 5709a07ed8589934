"""Tiny models with a speech encoder, their inputs, and trainers for them."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

from feature_extraction_maxmvit import MaxMViTFeatureExtractor, read_processor
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.cli import parse_arguments
from ser.data.batches import PairCollator
from ser.training.trainer import SERTrainer
from tests.helpers.tiny import CONVNETS, tiny_config, tiny_feature_extractor, voice
from tests.helpers.training import make_arguments

RATE = 44_100

CLIPS = [voice(1.0), voice(2.3, f0=180, seed=1), voice(0.05, seed=2)]


def built(
    encoder: str, backbones: dict = CONVNETS, **changes
) -> tuple[MaxMViTForAudioClassification, MaxMViTFeatureExtractor]:
    """Returns a model with an encoder and convolutional branches, unless other `backbones` are given, and its feature
    extractor."""
    torch.manual_seed(1)
    model = MaxMViTForAudioClassification(tiny_config(**{"speech_encoder": encoder, **backbones, **changes}))
    model.maxmvit.load_speech_weights()
    return model.eval(), tiny_feature_extractor(speech_processor=read_processor(encoder))


def inputs_of(extractor: MaxMViTFeatureExtractor, *clips: np.ndarray) -> dict[str, torch.Tensor]:
    return dict(extractor(list(clips), sampling_rate=RATE, return_tensors="pt"))


@torch.no_grad()
def logits_of(model, extractor, *clips) -> torch.Tensor:
    return model(**inputs_of(extractor, *clips)).logits


@torch.no_grad()
def assert_reloads(*folders: Path) -> None:
    """Checks that the model and extractor in `saved` of each folder, loaded with the code beside them, give the logits
    `logits.pt` for the clips `clips.npz`. Must be called in a new process."""
    trust = {"trust_remote_code": True}
    for folder in folders:
        saved, clips = folder / "saved", list(np.load(folder / "clips.npz").values())
        expected = torch.load(folder / "logits.pt")
        model, info = AutoModelForAudioClassification.from_pretrained(saved, output_loading_info=True, **trust)
        assert not any(info.values()), info
        extractor = AutoFeatureExtractor.from_pretrained(saved, **trust)
        for part in (model, extractor):
            assert type(part).__module__.startswith("transformers_modules."), type(part)
        inputs = inputs_of(extractor, *clips)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-6)
        features = AutoModel.from_pretrained(saved, **trust).eval()(**inputs).pooler_output
        assert features.equal(model.maxmvit(**inputs).pooler_output)
        (row,) = pipeline("audio-classification", model=str(saved), **trust)(clips[:1], sampling_rate=RATE)
        assert abs(max(each["score"] for each in row) - float(expected[0].softmax(-1).max())) < 1e-5


class Sounds(list):
    """Clips with their classes, in the format of the collator's input."""

    def __init__(self, count: int):
        sounds = [voice(0.3 + 0.1 * (i % 3), f0=100 + 40 * (i % 4), seed=i) for i in range(count)]
        super().__init__(
            {"file": f"{i}", "audio": {"array": sound, "sampling_rate": RATE}, "label": i % 4}
            for i, sound in enumerate(sounds)
        )


def trainer_of(model, extractor, folder, **changes) -> SERTrainer:
    settings = {
        "num_train_epochs": 2, "eval_strategy": "no", "lr_scheduler_type": "cosine",
        "load_best_model_at_end": False, "save_total_limit": None, **changes,
    }  # fmt: skip
    return SERTrainer(
        model=model,
        args=make_arguments(folder, **settings),
        data_collator=PairCollator(extractor),
        train_dataset=Sounds(8),
        processing_class=extractor,
    )


def command(encoder: str | None, *flags: str):
    chosen = [] if encoder is None else ["--speech_encoder", encoder]
    return parse_arguments(["--output_dir", "out", "--imagenet_weights", "false", "--use_cpu", *chosen, *flags])
