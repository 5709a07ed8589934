"""
Runs transformers' own tests of models on a tiny MaxMViT. Its wheel does not contain them; `.ci/battery`
unpacks those of the installed version from the source distribution.

The flags of the battery skip tests that do not apply to this model: text generation, tied or resized embeddings (the
inputs are images, not tokens), attention maps and a choice of attention kernels (timm's attention has neither), tensor
parallelism, and what needs accelerators or libraries that are missing. `test_can_init_all_missing_weights` is also
skipped, as for every model without a recent copyright line: it sets the seed after building a model and before
initialising its weights, when timm has already initialised its own.
`test_missing_backbone_weights_are_initialised_by_timm` replaces it.
"""

import importlib
import sys
import unittest
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
import transformers
from timm.models.maxxvit import MaxxVitStage
from timm.models.mvitv2 import MultiScaleVitStage
from transformers.models.auto import modeling_auto

from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification, MaxMViTModel
from tests.helpers.tiny import FEW_STAGES, tiny_config, tiny_images, tiny_learnable, voice

pytestmark = pytest.mark.slow
BATTERY = Path(__file__).parents[2] / f".cache/transformers-{transformers.__version__}/tests"


def load_battery() -> ModuleType:
    """
    Imports `test_modeling_common.py`. It imports two mixins, for export and text generation, from folders that the
    source distribution leaves out; empty classes replace them.
    """
    package = ModuleType("transformers_battery")
    package.__path__ = [str(BATTERY)]
    modules = {package.__name__: package}
    for folder, file, mixin in (
        ("exporters", "test_export", "ExportTesterMixin"),
        ("generation", "test_utils", "GenerationTesterMixin"),
    ):
        left_out = ModuleType(f"{package.__name__}.{folder}.{file}")
        setattr(left_out, mixin, type(mixin, (), {}))
        modules |= {f"{package.__name__}.{folder}": ModuleType(folder), left_out.__name__: left_out}
    sys.modules.update(modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # marks of transformers' own CI
        return importlib.import_module(f"{package.__name__}.test_modeling_common")


if not BATTERY.is_dir():
    pytest.skip(f"{BATTERY} does not exist: run .ci/battery to fetch it.", allow_module_level=True)
common = load_battery()


class MaxMViTTester:
    """Provides what the battery expects of the tester of a model, which has the fewest stages that differ in kind."""

    batch_size = 3
    is_training = True

    def prepare_config_and_inputs_for_common(self) -> tuple[MaxMViTConfig, dict[str, torch.Tensor]]:
        images = tiny_images(self.batch_size)
        return tiny_config(**FEW_STAGES), {name: values.to(common.torch_device) for name, values in images.items()}


class LearnableFiltersTester(MaxMViTTester):
    def prepare_config_and_inputs_for_common(self) -> tuple[MaxMViTConfig, dict[str, torch.Tensor]]:
        config, extractor = tiny_learnable()
        inputs = extractor([voice(0.2 + 0.1 * i, seed=i) for i in range(self.batch_size)], 44_100, "pt")
        return config, {
            name: values.to(common.torch_device) for name, values in inputs.items() if name != "mel_values"
        }


class MaxMViTModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MaxMViTModel, MaxMViTForAudioClassification)
    tester = MaxMViTTester
    has_attentions = False
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = self.tester()
        # The battery recognises the kind of a model by its name in the tables of transformers.
        for table, model_class in (
            (modeling_auto.MODEL_MAPPING_NAMES, MaxMViTModel),
            (modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, MaxMViTForAudioClassification),
        ):
            named = patch.dict(table, {MaxMViTConfig.model_type: model_class.__name__})
            named.start()
            self.addCleanup(named.stop)

    def subTest(self, *args, **kwargs) -> AbstractContextManager:
        """Does not report subtests: the battery has one for each weight, thousands of lines in a report."""
        return nullcontext()

    def test_hidden_states_output(self):
        """Expects maps of both branches, `(batch_size, channels, height, width)`; the original expects tokens."""
        config, images = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for config.output_hidden_states, kwargs in ((False, {"output_hidden_states": True}), (True, {})):
                model = model_class(config).to(common.torch_device).eval()
                with torch.no_grad():
                    maps = model(**images, **kwargs).hidden_states
                self.assertEqual(len(maps), sum(len(b.feature_info) for b in model.branches().values()))
                self.assertTrue(all(values.ndim == 4 and len(values) == 3 for values in maps))
            config.output_hidden_states = False

    def test_model_get_set_embeddings(self):
        """Expects no embeddings; the original expects some."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsNone(model.get_input_embeddings())
            with self.assertRaisesRegex(NotImplementedError, "no token embeddings"):
                model.set_input_embeddings(torch.nn.Embedding(10, 10))

    def test_gradient_checkpointing_enable_disable(self):
        """Runs the original with timm's stages as the layers with checkpointing, instead of those of transformers."""
        with patch.object(common, "GradientCheckpointingLayer", (MaxxVitStage, MultiScaleVitStage)):
            super().test_gradient_checkpointing_enable_disable()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs: dict | None = None):
        """Expects every block to run through torch's checkpoint; the original checks the layers of transformers."""
        config, images = self.model_tester.prepare_config_and_inputs_for_common()
        model = MaxMViTForAudioClassification(config).to(common.torch_device).train()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs)
        blocks = [b for backbone in model.branches().values() for stage in backbone.stages for b in stage.blocks]
        labels = torch.zeros(len(images["mel_values"]), dtype=torch.long, device=common.torch_device)
        with patch.object(torch.utils.checkpoint, "checkpoint", wraps=torch.utils.checkpoint.checkpoint) as checkpoint:
            model(**images, labels=labels).loss.backward()
        self.assertEqual(checkpoint.call_count, len(blocks))
        self.assertTrue(all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()))


class LearnableFiltersTest(MaxMViTModelTest):
    """Runs the tests on a model with learnable Mel filters, except those of the blocks of timm's backbones."""

    tester = LearnableFiltersTester
    test_gradient_checkpointing_enable_disable = None
    test_training_gradient_checkpointing = None
    test_training_gradient_checkpointing_use_reentrant_false = None
    test_training_gradient_checkpointing_use_reentrant_true = None
