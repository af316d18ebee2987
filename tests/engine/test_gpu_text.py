"""The whole way from a prompt to tokens: a GPU, with any memory, writes what the CPU writes."""

import pytest

import martlet
from martlet.engine.request import Context, Finished, Request, SamplingParams, Suppress

pytestmark = pytest.mark.gpu
PROMPTS = [(3, 500, 7000, 12), (8, 41, 7), (900, 901)]
# float16 against float32 over two layers; the logits are of the order of 3.
NEAR = 0.05


def _context(model, prompt):
    has_encoder = model._model.generator.architecture.has_encoder
    return Context((1,), prompt) if has_encoder else Context(prompt)


def _written(model, prompt, **params):
    task_model = model._model
    request = Request(
        context=_context(model, prompt),
        params=SamplingParams(max_tokens=50, seed=4, **params),
        constraint=Suppress(task_model.suppressed()),
        prompt_ids=prompt,
    )
    *tokens, finished = task_model.generator.generate(request)
    assert isinstance(finished, Finished)
    return [event.token_id for event in tokens], [event.logprob for event in tokens]


@pytest.mark.parametrize("folder", ["tiny_cpm1", "tiny_eva"])
def test_the_gpu_writes_what_the_cpu_writes(folder, request):
    path = request.getfixturevalue(folder)
    on_cpu, on_gpu = (martlet.load(path, device=device) for device in ("cpu", "cuda"))
    for prompt in PROMPTS:
        expected, expected_logprobs = _written(on_cpu, prompt, temperature=0)
        ids, logprobs = _written(on_gpu, prompt, temperature=0)
        assert len(ids) == len(expected) == 50
        same = next((i for i in range(50) if ids[i] != expected[i]), 50)
        assert logprobs[:same] == pytest.approx(expected_logprobs[:same], abs=NEAR)
        if same < 50:  # only where the CPU finds two tokens as good as equal
            context = _context(on_cpu, prompt)
            sequence = on_cpu._model.generator.start(context, 50, None)
            logits = sequence.advance([*context.decoder_ids, *expected[:same]])[0]
            assert logits[expected[same]] - logits[ids[same]] < NEAR


@pytest.mark.parametrize(
    "params", [{"temperature": 0}, {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1}]
)
def test_one_text_after_the_other_in_the_same_memory_is_the_text_in_new_memory(tiny_cpm1, params):
    model = martlet.load(tiny_cpm1, device="cuda")
    again = [_written(model, prompt, **params) for prompt in (*PROMPTS, *PROMPTS)]
    assert model._model.generator._kept is not None
    assert again[:3] == again[3:]
    for prompt, written in zip(PROMPTS, again, strict=False):
        assert _written(martlet.load(tiny_cpm1, device="cuda"), prompt, **params) == written


def test_a_text_left_half_way_does_not_disturb_the_next(tiny_cpm1):
    model = martlet.load(tiny_cpm1, device="cuda")
    whole = _written(model, PROMPTS[0], temperature=0)
    for _ in range(3):
        request = Request(
            Context(PROMPTS[1]),
            SamplingParams(max_tokens=50, temperature=0),
            Suppress(model._model.suppressed()),
        )
        events = model._model.generator.generate(request)
        next(events), next(events)
        events.close()  # steps still run ahead
        assert _written(model, PROMPTS[0], temperature=0) == whole
