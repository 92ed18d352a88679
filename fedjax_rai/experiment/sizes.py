"""The sizes of an arm that its memory plan depends on: lengths of its encoded texts, numbers of rows."""

from collections.abc import Sequence
from typing import Any

import jax

from fedjax_rai.config.files import ONLINE
from fedjax_rai.data.examples import bucket, encode_chats, encode_questions
from fedjax_rai.evals.drift import DRIFT
from fedjax_rai.evals.open_ended import Request, turns_of
from fedjax_rai.evals.suite import evaluation_texts
from fedjax_rai.experiment.judging import device_judges
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory.plan import JudgeSize, Lengths, Sizes, has_cai
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import lora_shape
from fedjax_rai.safety.guard import request_length
from fedjax_rai.text.prompts import ASSISTANT, answered, prompt


def sizes(setting: Setting) -> Sizes:
    """Those of an arm; reads its data and the shapes of its models, and encodes the texts."""
    config = setting.config
    online = has_cai(config) and config.cai.data == ONLINE
    guarded = _by_model(setting)
    return Sizes(
        model=_decoder(setting),
        guard=setting.guarding.released_architecture if guarded else None,
        guarded=guarded,
        lengths=_lengths(setting),
        pairs=len(setting.texts.materials.pairs),
        red=len(setting.texts.materials.red_prompts) if online else 0,
        prepared=len(setting.revising.prepared.chosen.tokens) if has_cai(config) and not online else 0,
        judges=_judges(setting),
        **_devices(setting),
    )


def preparing(setting: Setting) -> Sizes:
    """Those of holding conversations alone, as `cai generate` does."""
    lengths, red = Lengths(**_rollout_lengths(setting)), len(setting.texts.materials.red_prompts)
    known = {"guard": None, "guarded": False, "pairs": 0, "prepared": 0}
    return Sizes(model=_decoder(setting), lengths=lengths, red=red, preparing=True, **known, **_devices(setting))


def _judges(setting: Setting) -> tuple[JudgeSize, ...]:
    """The judges that are models on the device."""
    return tuple(
        JudgeSize(
            judge.name,
            judge.architecture,
            judge.request_length,
            judge.is_base,
            lines=judge.form.lines,
            weights=judge.adapter_bytes,
        )
        for judge in device_judges(setting.given_to_judges)
    )


def _by_model(setting: Setting) -> bool:
    """Whether something reads the scores of a guard that is a model."""
    return setting.guarded and not setting.guarding.is_function


def _devices(setting: Setting) -> dict[str, Any]:
    return {"devices": jax.device_count(), "widens": jax.default_backend() == "cpu"}


def _decoder(setting: Setting) -> Decoder:
    """The base's decoder on one device, before the mesh is chosen."""
    architecture = setting.models.architecture
    return Decoder(architecture, lora_shape(setting.config.lora, architecture))


def _rollout_lengths(setting: Setting) -> dict[str, int]:
    few_shot = setting.revising.constitution.few_shot
    return {
        "red": setting.texts.red_prompts.tokens.shape[1],
        "opening": setting.revising.openings.tokens.shape[1] if few_shot else 0,
        "few_shot": len(setting.models.tokenizer.encode(prompt(setting.models.tokenizer, few_shot))) if few_shot else 0,
        "critique": setting.revising.requests.critique.tokens.shape[1],
        "revision": setting.revising.requests.revision.tokens.shape[1],
    }


def _lengths(setting: Setting) -> Lengths:
    config = setting.config
    made, tokenizer, most = setting.texts.materials, setting.models.tokenizer, config.data.max_length
    cai, online = has_cai(config), has_cai(config) and config.cai.data == ONLINE

    def longest(requests: Sequence[Request]) -> int:
        lengths = []
        for request in requests:
            turns = turns_of(request)
            answers = sum(turn.role == ASSISTANT for turn in turns) * config.eval.max_new_tokens
            (ids,) = encode_questions(tokenizer, [turns], most)
            lengths.append(len(ids) + answers)
        return bucket(max(lengths)) if lengths else 0

    asked, compared = evaluation_texts(made.evaluations)
    read = [answered(prompt, answer) for prompt, answer in compared]
    return Lengths(
        train=setting.texts.padded_length,
        guard_request=_guard_request(setting) if _by_model(setting) else 0,
        guard_lines=setting.guarding.form.lines if _by_model(setting) else 0,
        prepared=setting.revising.prepared.chosen.tokens.shape[1] if cai and not online else 0,
        replay=longest(made.benign_prompts) if cai else 0,
        asked=longest(asked),
        probe=longest(made.probe_prompts[: config.cai.probe]),
        choice=encode_chats(tokenizer, read, most)[0].tokens.shape[1] if read else 0,
        drift=longest(made.evaluations[DRIFT.name].prompts),
        **(_rollout_lengths(setting) if online else {}),
    )


def _guard_request(setting: Setting) -> int:
    """Tokens of the guard's own words around an empty pair, and of the lines that it writes."""
    return request_length(setting.guarding.tokenizer, setting.guarding.form)
