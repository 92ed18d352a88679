"""FLOPs and bytes of each work, worked out by hand on sizes small enough to see."""

import pytest

from fedjax_rai.bench.floors import (
    Part,
    Sizes,
    cai_floor,
    decoding_floor,
    floor_seconds,
    job_floor,
    round_floor,
    score_floor,
)
from fedjax_rai.bench.shapes import CaiShape, DecodingShape, RoundShape, ScoreShape
from fedjax_rai.experiment.cost import Parameters

# 100 parameters of kernels, 40 of them the unembedding, and 6 of the adapter; weights of 1000 bytes, 10 a cached token.
SIZES = Sizes(
    Parameters(kernels=100, unembedding=40, adapter=6, remat=False), weight_bytes=1000, head_bytes=300, slot_bytes=10
)
LAYERS = 2 * (60 + 6)  # FLOPs of a token without logits
HEAD = 2 * 40  # FLOPs of its logits
STEP = 4 * 100 + 6 * 6  # FLOPs of a trained token


def test_a_round_trains_on_every_token_and_reads_the_weights_forward_and_backward() -> None:
    shape = RoundShape(clients=5, steps=3, batch=2, length=7)
    assert round_floor(SIZES, shape) == [Part("train", 5 * 3 * 2 * 7 * STEP, 5 * 3 * 2 * 1000)]


def test_clients_of_a_chunk_read_the_weights_together() -> None:
    shape = RoundShape(clients=5, steps=3, batch=2, length=7, chunk=2)
    (part,) = round_floor(SIZES, shape)
    assert part.bytes == 3 * 3 * 2 * 1000  # chunks of 2, 2 and 1


def test_layers_that_are_computed_again_cost_a_forward_pass_without_logits() -> None:
    sizes = SIZES._replace(count=SIZES.count._replace(remat=True))
    (part,) = round_floor(sizes, RoundShape(1, 1, 1, 10))
    assert part == Part("train", 10 * (STEP + LAYERS), 3 * 1000 - 300)


def test_decoding_reads_weights_and_what_is_cached_for_every_token() -> None:
    read, decode = decoding_floor(SIZES, DecodingShape(rows=2, prompt=4, new=3))
    assert read == Part("read", 2 * 4 * LAYERS + 2 * HEAD, 1000)
    # the first of three tokens comes with the prompt; the two passes see 5 and 6 tokens of each row
    assert decode == Part("decode", 2 * 2 * (LAYERS + HEAD), 2 * 1000 + 2 * (5 + 6) * 10)


def test_one_token_needs_no_pass_of_its_own() -> None:
    _, decode = decoding_floor(SIZES, DecodingShape(rows=2, prompt=4, new=1))
    assert decode == Part("decode", 0, 0)


def test_a_job_takes_the_passes_of_rows_that_never_wait() -> None:
    """Answers of 1, 3 and 4 tokens to prompts of one token, in two rows: five further tokens take three passes."""
    shape = DecodingShape(rows=2, prompt=1, new=9, answers=3)
    assert shape.prompts == [1, 1, 1]
    read, decode = job_floor(SIZES, shape, [1, 3, 4])
    assert read == Part("read", 3 * LAYERS + 3 * HEAD, 2 * 1000)  # two rows, then one more: two passes
    assert decode == Part("decode", 5 * (LAYERS + HEAD), 3 * 1000 + (2 + 3 + 2 + 3 + 4) * 10)
    # one answer alone cannot be shorter than it is
    assert job_floor(SIZES, shape._replace(rows=3), [1, 1, 6])[1].bytes == 5 * 1000 + (2 + 3 + 4 + 5 + 6) * 10


CAI = CaiShape(prompts=4, chunk=2, prompt=3, request=2, new=2, revisions=1, iterations=5, batch=2)


def test_a_phase_converses_and_trains() -> None:
    converse, train = cai_floor(SIZES, CAI)
    # three answers of 2 tokens and two requests of 2 follow a prompt of 3; the last token is not read
    assert converse.flops == 4 * ((3 + 6 + 4 - 1) * LAYERS + 6 * HEAD)
    # two chunks; a pass for each of the 6 tokens; the second tokens of answers see 4, 8 and 12 tokens
    assert converse.bytes == 2 * 6 * 1000 + 4 * (4 + 8 + 12) * 10
    # ten examples of 5 tokens, 2 of which are learnt
    assert train == Part("train", 50 * (4 * 60 + 6 * 6) + 20 * 4 * 40, 5 * 2 * 1000)


def test_a_critic_with_another_adapter_reads_prompt_and_response_again() -> None:
    alike, again = (cai_floor(SIZES, CAI, reads_again=reads)[0] for reads in (False, True))
    assert again.flops - alike.flops == 4 * (3 + 2) * LAYERS
    assert again.bytes - alike.bytes == 2 * 1000


def test_an_adapter_in_the_kernels_is_neither_multiplied_with_nor_read_while_texts_are_generated() -> None:
    merged = SIZES._replace(count=SIZES.count._replace(adapter=0), weight_bytes=900)
    (apart, train), (found, same) = (cai_floor(SIZES, CAI, generating=generating) for generating in (None, merged))
    assert apart.flops - found.flops == 4 * (3 + 6 + 4 - 1) * 2 * 6 and same == train
    assert apart.bytes - found.bytes == 2 * 6 * 100


def test_a_preference_has_two_answers_an_example_and_a_reference() -> None:
    _, reference, train = cai_floor(SIZES, CAI, is_preference=True)
    assert reference == Part("reference", 8 * 5 * LAYERS + 8 * 2 * HEAD, 1000)
    assert train.flops == 2 * (50 * (4 * 60 + 6 * 6) + 20 * 4 * 40)


def test_scoring_needs_logits_of_one_token_a_pair() -> None:
    shape = ScoreShape(pairs=5, length=4, batch=2)
    assert score_floor(SIZES, shape) == [Part("score", sum(shape.lengths) * LAYERS + 5 * HEAD, 3 * 1000)]


def test_each_part_takes_what_binds_it() -> None:
    parts = [Part("a", flops=100, bytes=10), Part("b", flops=10, bytes=300)]
    assert floor_seconds(parts, matmul_flops=50.0, copy_bytes=100.0) == pytest.approx(100 / 50 + 300 / 100)


def test_pairs_are_about_as_long_as_asked_for() -> None:
    lengths = ScoreShape(pairs=1000, length=128).lengths
    assert (min(lengths), max(lengths)) == (64, 192) and lengths == ScoreShape(pairs=1000, length=128).lengths
    assert abs(sum(lengths) / 1000 - 128) < 5
