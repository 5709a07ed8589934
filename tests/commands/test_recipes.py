"""The recipes of docs/architecture.md, applied as printed to a copy of the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CORPUS_PAGE = (ROOT / "docs" / "adding_a_corpus.md").read_text(encoding="utf-8")
RECIPES = {
    match[1]: match[3]
    for match in re.finditer(r"\*\*A[n]? ([\w ]+)\*\* \((\d) edits\)(?:(?!\*\*).)*?```diff\n(.*?)```", PAGE, re.DOTALL)
}
COUNTS = {"parameter of the extractor": 4, "option of augmentation": 3, "field of the model": 4}
CHECK = """
import torch
import numpy as np
from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import (
    FIRST_SETTINGS, IMAGE_PARAMETERS, MaxMViTFeatureExtractor, checked_settings, image_settings
)
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.arguments import AugmentationArguments, ModelArguments
from ser.cli import command_parser
from ser.data.augmentation import make_augmentation
from ser.data.corpora.registry import list_corpora
from ser.data.spectrogram_cache import extractor_key
from ser.export.front_end import FrontEnd
from ser.models import make_config

# the parameter of the extractor
plain = MaxMViTFeatureExtractor(image_size=32)
changed = MaxMViTFeatureExtractor(image_size=32, contrast=2.0, channels="deltas", mel_representation="mfcc")
assert "contrast" in IMAGE_PARAMETERS and extractor_key(plain) == extractor_key(changed)
wave = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
clips = plain.spectrograms(wave)
squared = MaxMViTFeatureExtractor(image_size=(84, 1 + 30_000 // 512), contrast=2.0).images(clips)["cqt_values"]
same = MaxMViTFeatureExtractor(image_size=(84, 1 + 30_000 // 512)).images(clips)["cqt_values"]
assert torch.allclose(squared, same**2, atol=1e-6) and not torch.allclose(squared, same, atol=1e-2)
for extractor in (plain, changed):
    exported = FrontEnd(extractor)(torch.from_numpy(wave)[None])
    expected = extractor(wave, sampling_rate=44_100, return_tensors="pt")
    for name, values in expected.items():
        assert (exported[name] - values).abs().max() < 0.05, name
assert MaxMViTFeatureExtractor(**changed.to_dict()).contrast == 2.0
older = {name: value for name, value in image_settings(plain).items() if name in FIRST_SETTINGS}
assert checked_settings(older) == image_settings(plain) and image_settings(changed)["contrast"] == 2.0
for wrong in ("much", float("nan")):
    try:
        MaxMViTFeatureExtractor(contrast=wrong)
    except ValueError as error:
        assert "contrast" in str(error)
    else:
        raise AssertionError(wrong)

# the option of augmentation
images = {"cqt": torch.zeros(2, 1, 8, 8)}
assert make_augmentation(AugmentationArguments(), 4) is None
noisy, _ = make_augmentation(AugmentationArguments(image_noise=0.1), 4)(images, torch.zeros(2))
assert 0.05 < noisy["cqt"].std() < 0.2
assert "--image_noise" in command_parser().format_help() or command_parser()._option_string_actions["--image_noise"]

# the field of the model, and a backbone of timm
nets = {"cqt_backbone": "test_vit", "mel_backbone": "test_resnet", "imagenet_weights": False, "image_size": [160]}
config = make_config(ModelArguments(**nets, hidden_slope=0.5, hidden_size=8))
assert config.hidden_slope == 0.5 and MaxMViTConfig(**config.to_dict()).hidden_slope == 0.5
model = MaxMViTForAudioClassification(config).eval()
assert model.classifier.activation(torch.tensor(-1.0)) == -0.5
given = {name: torch.zeros(1, 3, 160, 160) for name in ("cqt_values", "mel_values")}
assert model(**given).logits.shape == (1, config.num_labels)

# the corpus
assert any(line.split()[:4] == ["emovo", "588", "7", "6"] for line in list_corpora().splitlines())
print("done")
"""


def edits(recipe: str) -> list[tuple[str, str, str]]:
    """Returns (file, old text, new text) for each edit of a recipe."""
    found = []
    for part in re.split(r"^--- ", recipe, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        for edit in re.split(r"^@@.*\n", rest, flags=re.MULTILINE)[1:]:
            lines = edit.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
            found.append((name.strip(), old, new))
    return found


def test_recipes_have_the_stated_number_of_edits():
    assert {name: len(edits(recipe)) for name, recipe in RECIPES.items()} == COUNTS
    for name, count in COUNTS.items():
        assert f"{name}** ({count} edits)" in PAGE


@pytest.mark.slow
def test_the_recipes_work_as_printed(tmp_path):
    for path in [*ROOT.glob("*.py"), *ROOT.glob("ser/**/*.py")]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    changes = [edit for recipe in RECIPES.values() for edit in edits(recipe)]
    # The corpus: its file, and its import and its line in the registry.
    codes = re.findall(r"```python\n(.*?)```", CORPUS_PAGE, re.DOTALL)
    (tmp_path / "ser/data/corpora/emovo.py").write_text(next(code for code in codes if "RECORD = " in code))
    listing = next(code for code in codes if "# the other corpora" in code)
    (line,) = re.findall(r'^    "emovo": .*\n', listing, re.MULTILINE)
    registry = "ser/data/corpora/registry.py"
    changes += [
        (registry, "    emodb,\n", "    emodb,\n    emovo,\n"),
        (registry, '    "demo": demo.RECORD,\n', line + '    "demo": demo.RECORD,\n'),
    ]
    for name, old, new in changes:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
