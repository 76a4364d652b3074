"""A full-size SmolVLA with random weights, made without the hub.

Sizes are those of lerobot/smolvla_base and of the SmolVLM2-500M that it stands on. Its tokeniser is
one of bytes: both servers get the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig
from transformers.models.smolvlm import SmolVLMImageProcessor, SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

STATE = ACTIONS = 6
CAMERAS = ("front", "wrist")
_SPECIAL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def write_smolvla(folder: Path) -> Path:
    """Writes the policy as LeRobot saves one, where it is not there yet; returns its directory."""
    path, language = folder / "smolvla", folder / "language"
    if (path / "policy_postprocessor.json").is_file():
        return path
    _write_language(language)
    images = {
        f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for n in CAMERAS
    }
    config = make_policy_config(
        "smolvla",
        device="cpu",
        vlm_model_name=str(language.resolve()),
        input_features=images | {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTIONS,))},
    )
    torch.manual_seed(0)
    policy: Any = get_policy_class("smolvla")(config)
    numbers = {"mean": torch.zeros(6), "std": torch.ones(6)}
    stats: Any = {"observation.state": numbers, "action": numbers}
    policy.save_pretrained(path)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(path)
    return path


def _write_language(path: Path) -> None:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *_SPECIAL.values()]
    words += sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=_SPECIAL,
    )
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokeniser,
        video_processor=SmolVLMVideoProcessor(),
        chat_template="{{ messages }}",
    ).save_pretrained(path)
    settings: dict[str, Any] = {
        "text_config": {
            "model_type": "llama",
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 16,  # SmolVLA keeps the first 16 of 32
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "vocab_size": 49280,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        "scale_factor": 4,
        "image_token_id": 4,
        "pad_token_id": 0,
    }
    SmolVLMConfig(**settings).save_pretrained(path)
