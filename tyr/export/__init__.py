"""Exports of pruned models. Importing this package does no work."""

from __future__ import annotations


def register() -> None:
    """Teach the Auto classes of transformers the pruned architectures.

    Afterwards `AutoModelForCausalLM.from_pretrained(directory)` reads an export without
    `trust_remote_code`, with the code of the installed tyr. Calling it again changes nothing.
    No import calls it: a library that changes the Auto classes when it is imported surprises. What
    loads exports itself (`tyr.latency`) calls it, and so may any program that trusts tyr but not
    the file in the directory.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from tyr.export import modeling_tyr
    from tyr.model.architecture import ARCHITECTURES

    for architecture in ARCHITECTURES.values():
        model = getattr(modeling_tyr, f"Tyr{architecture.class_name}")
        backbone = getattr(modeling_tyr, model.__name__.removesuffix("ForCausalLM") + "Model")
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, backbone, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        # So that `save_pretrained` copies the code along and names it in `auto_map`.
        config.register_for_auto_class()
        backbone.register_for_auto_class("AutoModel")
        model.register_for_auto_class("AutoModelForCausalLM")
