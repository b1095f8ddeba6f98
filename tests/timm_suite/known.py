"""Tests of timm's that do not hold yet, or cannot: name or start of it, and why.

Each is marked strictly: one that begins to pass fails the run until its line is taken away.
"""

from __future__ import annotations

# An expanded model and torch.jit.script.
SCRIPTING = "torch.jit.script takes no parametrized module; contract(model) first"

# One forward proves that shapes fit each other, and tells the widths. These models' own does not:
_TUPLE = "forward_features gives two tensors with aux_logits=True; the probe takes one"
_CHANNELS = "its blocks give b x h x w x c; the probe reads the height as channels"
_SHARED = "a module in two places is left on the meta device by the probe"
_ENCODER = "an encoder without classification refuses the probe's forward_head"
_PATCHES = "another patch_size does not divide the default image that the probe takes"
_FUSED = "a fused layer has no conv of its own, which a rule of attributes looks for"

DENSE_TWINS = {
    "test_inception_v3_aux_logits_reset_prune": _TUPLE,
    "test_head_hidden_size[samvit_base_patch16": _CHANNELS,
    "test_samvit_feature_getter_channels[": _CHANNELS,
    "test_forward_after_prune_intermediate_layers[coat_": _SHARED,
    "test_gemma4_forward_intermediates_dict_output": _ENCODER,
    "test_vit_classifier_checkpoint[False-deepseek_vit_412m": _PATCHES,
    "test_vit_classifier_checkpoint[True-deepseek_vit_412m": _PATCHES,
    "test_vit_classifier_checkpoint[": _ENCODER,
    "test_vit_classifier_encoder_hooks[deepseek_vit_412m": _PATCHES,
    "test_model_init_weights_after_to_empty[deepseek_vit_412m_align": _PATCHES,
    "test_vit_classifier_pruned_features[deepseek_vit_412m": _PATCHES,
    "test_mobile_model_fusion_features[shvit_s1": _FUSED,
}


def reason_of(test: str, wide: bool) -> str | None:
    """Tell why a test of timm's is expected to fail, or None.

    Args:
        test: Its name with parameters.
        wide: Its model is an expanded twin.

    Example:
        >>> reason_of("test_samvit_feature_getter_channels[0-True]", wide=False)
        'its blocks give b x h x w x c; the probe reads the height as channels'
    """
    if wide:
        return SCRIPTING if "torchscript" in test else None
    return next((why for start, why in DENSE_TWINS.items() if test.startswith(start)), None)
