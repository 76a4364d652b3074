"""Tiny LeRobot policies with random weights, built without the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi_gemma import PiGemmaRMSNorm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig
from transformers.models.smolvlm import (
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

KINDS = ("smolvla", "pi0", "pi05", "xvla")
STATE, ACTIONS, HORIZON, SIDE = 5, 4, 6, 32
CAMERAS = ("observation.images.front", "observation.images.wrist")


def features() -> dict[str, dict[str, PolicyFeature]]:
    """Two cameras, a state and an action."""
    images = {name: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for name in CAMERAS}
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    action = {"action": PolicyFeature(FeatureType.ACTION, (ACTIONS,))}
    return {"input_features": images | state, "output_features": action}


def stats() -> dict[str, dict[str, torch.Tensor]]:
    """Means and spreads that are not the neutral ones."""
    found = {}
    for name, count in (("observation.state", STATE), ("action", ACTIONS)):
        mean = torch.linspace(-0.4, 0.5, count)
        std = torch.linspace(0.5, 1.5, count)
        low, high = mean - 2 * std, mean + 2 * std
        found[name] = {"mean": mean, "std": std, "min": low, "max": high, "q01": low, "q99": high}
    return found


def write_language(path: Path) -> Path:
    """A byte-level tokeniser, and the configuration of a tiny SmolVLM beside it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *special.values(), *alphabet]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>")
    raw = Tokenizer(model)
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokeniser = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokeniser,
        video_processor=SmolVLMVideoProcessor(),
        chat_template="{{ messages }}",
    )
    processor.save_pretrained(path)
    SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": len(words),
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=4,
        pad_token_id=0,
    ).save_pretrained(path)
    return path


def _small_gemma(variant: str) -> modeling_pi0.GemmaConfig:
    width = 64 if variant == "gemma_2b" else 32
    return modeling_pi0.GemmaConfig(width, 2, 48, num_heads=8, num_kv_heads=1, head_dim=8)


@contextmanager
def small_gemmas() -> Iterator[None]:
    """Within it pi0 and pi0.5 are made tiny: LeRobot keeps their sizes in code."""
    kept: list[tuple[Any, str, Any]] = []

    def patch(module: Any, name: str, value: Any) -> None:
        kept.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def shrink(make: Any) -> Any:
        def made(config: Any) -> Any:
            text = getattr(config, "text_config", config)
            text.vocab_size = 320
            if hasattr(config, "vision_config"):
                vision = config.vision_config
                vision.hidden_size, vision.intermediate_size = 32, 48
                vision.num_hidden_layers, vision.num_attention_heads = 1, 2
                vision.patch_size, vision.projection_dim = 8, text.hidden_size
                config.image_token_index = 300
            return make(config)

        return made

    for module in (modeling_pi0, modeling_pi05):
        patch(module, "get_gemma_config", _small_gemma)
        for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
            patch(module, name, shrink(getattr(module, name)))
    try:
        yield
    finally:
        for module, name, value in reversed(kept):
            setattr(module, name, value)


def make_config(kind: str, language: Path, **changes: Any) -> Any:
    """The configuration of a tiny policy."""
    identity = dict.fromkeys(("VISUAL",), NormalizationMode.IDENTITY)
    scaled = dict.fromkeys(("STATE", "ACTION"), NormalizationMode.MEAN_STD)
    common = {
        "chunk_size": HORIZON,
        "n_action_steps": HORIZON,
        "max_state_dim": 8,
        "device": "cpu",
        "normalization_mapping": identity | scaled,
        **features(),
    }
    own: dict[str, dict[str, Any]] = {
        "smolvla": {
            "vlm_model_name": str(language),
            "resize_imgs_with_padding": (SIDE, SIDE),
            "max_action_dim": 8,
            "num_vlm_layers": 4,
        },
        "pi0": {"max_action_dim": 8, "image_resolution": (SIDE, SIDE)},
        "pi05": {"max_action_dim": 8, "image_resolution": (SIDE, SIDE)},
        "xvla": {
            "tokenizer_name": str(language),
            "tokenizer_max_length": 24,
            "florence_config": _FLORENCE,
            "resize_imgs_with_padding": (SIDE, SIDE),
            "action_mode": "auto",
            "max_action_dim": 8,
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 4,
            "num_domains": 3,
            "len_soft_prompts": 4,
            "dim_time": 8,
            "max_len_seq": 96,
        },
    }
    return make_policy_config(kind, **(common | own[kind] | changes))


_FLORENCE = {
    "vision_config": {
        "model_type": "florence_vision",
        "embed_dim": [8, 16],
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
        "projection_dim": 32,
    },
    "text_config": {
        "model_type": "bart",
        "d_model": 32,
        "vocab_size": 320,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


@dataclass(frozen=True)
class Tiny:
    """A policy as LeRobot has it, and where it is saved."""

    kind: str
    policy: Any
    pre: Any
    post: Any
    path: Path
    language: Path


def build(kind: str, root: Path, language: Path, **changes: Any) -> Tiny:
    """Makes a policy with random weights and saves it as LeRobot does."""
    torch.manual_seed(hash_of(kind))
    config = make_config(kind, language, **changes)
    with small_gemmas():
        policy = get_policy_class(kind)(config)
    for module in policy.modules():
        if isinstance(module, PiGemmaRMSNorm) and module.dense is not None:
            # Zero at the start: a fresh pi0.5 would not see the time.
            torch.nn.init.normal_(module.dense.weight, std=0.3)
    policy.eval()
    pre, post = _processors(kind, config, language)
    path = root / kind
    for part in (policy, pre, post):
        part.save_pretrained(path)
    return Tiny(kind, policy, pre, post, path, language)


def hash_of(kind: str) -> int:
    """A seed of its own for each kind."""
    return 100 + KINDS.index(kind)


def _processors(kind: str, config: Any, language: Path) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor import TokenizerProcessorStep
    from transformers import AutoTokenizer

    if kind not in ("pi0", "pi05"):
        return make_pre_post_processors(config, dataset_stats=stats())
    # These two name a tokeniser of the hub: give them this one while they are made.
    module = __import__(f"lerobot.policies.{kind}.processor_{kind}", fromlist=["x"])
    tokeniser = AutoTokenizer.from_pretrained(language)

    def with_tokeniser(tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(tokenizer=tokeniser, **options)

    kept = module.TokenizerProcessorStep
    module.TokenizerProcessorStep = with_tokeniser
    try:
        return make_pre_post_processors(config, dataset_stats=stats())
    finally:
        module.TokenizerProcessorStep = kept
