"""What a model's files ask of whoever generates with it, and this package does not do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_rai import terminal
from fedjax_rai.reading import read_object, shown

GENERATION, CONFIG = "generation_config.json", "config.json"
SAMPLING = {"temperature": (1.0,), "top_p": (1.0,), "top_k": (0,), "min_p": (0.0,)}
"""Keys of sampling, which commands and configs have of their own -> the values that ask for nothing."""
COMPUTED = {
    "eos_token_id",  # ends an answer
    "do_sample",  # what it turns on is named by itself
}
HARMLESS = {
    "bos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens", "max_cache_len",
    "transformers_version", "trust_remote_code", "use_cache", "cache_implementation", "cache_config", "compile_config",
    "disable_compile", "continuous_batching_config", "prefill_chunk_size", "low_memory", "return_legacy_cache",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "speculation_type", "target_lookbehind", "use_mtp", "num_return_sequences",
}  # fmt: skip
"""Keys of lengths, beginnings, padding, which commands set; and of how fast answers come and what is told of them."""
NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "num_beams": 1, "num_beam_groups": 1, "typical_p": 1.0, "top_h": None,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1.0,
    "diversity_penalty": 0.0, "length_penalty": 1.0, "early_stopping": False, "penalty_alpha": 0.0,
    "renormalize_logits": False, "remove_invalid_values": False, "token_healing": False, "constraints": None,
    "force_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "bad_words_ids": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "forced_decoder_ids": None, "sequence_bias": None,
    "exponential_decay_length_penalty": None, "stop_strings": None, "watermarking_config": None, "dola_layers": None,
    "stop_words": None,
}  # fmt: skip
"""Keys that change answers and are not computed -> the value that asks for nothing; so do null, false and nothing."""


def uncomputed(folder: Path) -> list[str]:
    """Lines on what a model's generation config asks for and is not done: nothing where all is done, or harmless.

    Whatever is not known to be computed or harmless is named. Without that file `config.json` is looked at for keys
    that are known, as older models have them there. Raises InputError for a file that is no JSON object.
    """
    path = folder / GENERATION
    if path.is_file():
        asked = read_object(path)
    elif (folder / CONFIG).is_file():
        raw = read_object(folder / CONFIG)
        asked = {name: value for name, value in raw.items() if name in NEUTRAL or name in SAMPLING}
        asked["do_sample"] = raw.get("do_sample")
        path = folder / CONFIG
    else:
        return []
    lines = []
    others = [f"{name} {shown(value)}" for name, value in sorted(asked.items()) if _is_asked(name, value)]
    if others:
        lines.append(f"{path}: asks for what is not computed: {', '.join(others)}")
    drawn = _sampling(asked)
    if drawn:
        lines.append(f"{path}: its sampling is not used, but the settings of this command: {', '.join(drawn)}")
    return lines


def name_uncomputed(folder: Path) -> list[str]:
    """The lines of `uncomputed`, said on standard error."""
    lines = uncomputed(folder)
    for line in lines:
        terminal.say(line)
    return lines


def _is_asked(name: str, value: Any) -> bool:
    if name in COMPUTED or name in HARMLESS or name in SAMPLING or name.startswith("_"):
        return False
    unset = value is None or value is False or value in ("", [], {})
    return not (unset or value == NEUTRAL.get(name))


def _sampling(asked: Mapping[str, Any]) -> list[str]:
    """What the settings of sampling are, where they are on and ask for something."""
    if not asked.get("do_sample"):
        return []
    found = [name for name in SAMPLING if asked.get(name) is not None and asked[name] not in SAMPLING[name]]
    return [f"{name} {shown(asked[name])}" for name in found]
