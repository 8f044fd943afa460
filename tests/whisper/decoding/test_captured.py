"""Steps that a graph can repeat give the tokens of steps that grow, batch after batch in the same memory."""

import pytest
import torch

from tests.whisper.decoding.test_greedy import generated, quantized
from wq.whisper.decoding.captured import CapturedSteps, can_capture
from wq.whisper.decoding.decode import token_limit
from wq.whisper.decoding.encoder_states import SAMPLING_RATE
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.decoding.greedy import checked, decode_greedily, decoding_rules, encode_rows

LIMIT = 40


class Recorder:
    """In place of a CUDA graph: the same operations anew, into the memory of the first results."""

    def __init__(self):
        self.captured = 0

    def __call__(self, operations):
        self.captured += 1
        results = operations()

        def replay():
            for result, new in zip(results, operations(), strict=True):
                result.copy_(new)
            return results

        return replay


def features_of(whisper, speech, indices):
    audios = [speech.read(index, SAMPLING_RATE) for index in indices]
    return log_mel(whisper.feature_extractor, audios).to(whisper.model.device)


def both(whisper, speech, batches, steps):
    """The tokens of every batch, with the steps and without."""
    model = whisper.model
    rules = decoding_rules(model, None, LIMIT)
    found = []
    for indices in batches:
        states = list(encode_rows(model, features_of(whisper, speech, indices)))
        ways = [decode_greedily(model, iter(states), len(indices), rules, steps=way) for way in (steps, None)]
        found.append(ways)
    return found


@pytest.mark.parametrize(("format", "granularity"), [("fp32", "none"), ("int4", "group"), ("int2", "tensor")])
@torch.inference_mode()
def test_tokens_are_those_of_growing_steps(nano, commands, format, granularity):
    model, record = nano.model, Recorder()
    batches = [range(6), range(6, 12), range(12, 15), range(15, 16)]
    with quantized(model, format, granularity):
        steps = CapturedSteps(model, decoding_rules(model, None, LIMIT), 6, record)
        for captured, plain in both(nano, commands, batches, steps):
            assert captured == plain
    # one for each power of two, and the whole batch: never one for each batch
    assert record.captured == len(steps.graphs)
    assert set(steps.graphs) <= {1, 2, 4, 6}


@torch.inference_mode()
def test_what_cannot_be_captured_is_computed_without(nano, commands):
    def fail(operations):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    steps = CapturedSteps(nano.model, decoding_rules(nano.model, None, LIMIT), 4, fail)
    with pytest.warns(UserWarning, match=r"not captured .*stream is capturing\); going on without") as warned:
        ((captured, plain),) = both(nano, commands, [range(4)], steps)
    assert captured == plain
    assert len([each for each in warned if "captured" in str(each.message)]) == 1


@torch.inference_mode()
def test_nan_is_told_but_not_of_rows_that_have_ended(nano, commands):
    steps = CapturedSteps(nano.model, decoding_rules(nano.model, None, LIMIT), 4, Recorder())
    both(nano, commands, [range(4)], steps)
    steps.audio[0].values[3] = float("nan")
    largest, _ = steps([5, 6, 7], 2)
    assert largest.isfinite().all()
    with pytest.raises(NonFiniteRow, match="NaN"):
        checked(*steps([5, 6, 7, 8], 2))


def test_only_where_every_step_is_the_same(nano):
    assert not can_capture(nano.model)  # on a CPU there is nothing to capture


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_graphs_give_the_tokens_of_growing_steps(nano, commands, recwarn):
    model = nano.model.to("cuda")
    try:
        assert can_capture(model)
        handle = model.model.decoder.layers[0].fc1.register_forward_pre_hook(lambda *_: None)
        assert not can_capture(model)
        handle.remove()
        steps = CapturedSteps(model, decoding_rules(model, None, LIMIT), 12)
        for captured, plain in both(nano, commands, [range(12), range(12, 24), range(24, 29)], steps):
            assert captured == plain
        assert not [each for each in recwarn if "not captured" in str(each.message)]
    finally:
        model.to("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_graphs_give_the_tokens_of_generate(nano, commands):
    """But for near-ties, which sums in another order may reverse."""
    model, count = nano.model.to("cuda"), 64
    try:
        features = features_of(nano, commands, range(count))
        rules = decoding_rules(model, None, token_limit(nano, None))
        steps = CapturedSteps(model, rules, count)
        found = decode_greedily(model, encode_rows(model, features), count, rules, steps=steps)
        texts = [row[:-1] if row[-1] == rules.end else row for row in found]
        expected = generated(model, features, rules.limit)
    finally:
        model.to("cpu")
    differing = sum(text != row for text, row in zip(texts, expected, strict=True))
    print(f"{differing} of {count} differ from generate")
    assert differing <= 1
