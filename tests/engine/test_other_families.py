"""GPT-2, Llama and T5 checkpoints with their own tokenizers go the same way as CPM and EVA."""

import pytest
import torch
from tokenizers.trainers import BpeTrainer

import martlet
from martlet.engine.request import Context, SamplingParams
from martlet.engine.score import score_tokens
from martlet.engine.write import complete, write
from martlet.errors import ContextLengthError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEXT = "天空是蔚蓝色，窗外有 🐦 飞 hello world"


def _byte_level(folder, *special):
    """A byte-level tokenizer.json with these control tokens as its last: (file, entries)."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=270,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([TEXT] * 5, trainer)
    library.add_special_tokens(list(special))
    path = folder / "tokenizer.json"
    library.save(str(path))
    return path, library.get_vocab_size()


@pytest.fixture(scope="module")
def gpt2(make_model, tmp_path_factory):
    path, size = _byte_level(tmp_path_factory.mktemp("gpt2"), "<|endoftext|>")
    folder = make_model(
        "gpt2",
        config={"vocab_size": size, "eos_token_id": size - 1},
        tokenizer=("huggingface", {path.name: path}),
    )
    return martlet.load(folder, device="cpu")


@pytest.fixture(scope="module")
def llama(make_model, tmp_path_factory):
    path, size = _byte_level(tmp_path_factory.mktemp("llama"), "<s>", "</s>")
    settings = path.with_name("tokenizer_config.json")
    settings.write_text('{"add_bos_token": true}')
    folder = make_model(
        "llama",
        config={"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1},
        tokenizer=("huggingface", {path.name: path, settings.name: settings}),
    )
    return martlet.load(folder, device="cpu")


@pytest.fixture(scope="module")
def t5(make_model, tmp_path_factory):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{letter}", -4.0) for letter in "abcdefgh"]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in (3, 2, 1, 0)]
    library = Tokenizer(models.Unigram(pieces, unk_id=2))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens([piece for piece, _ in pieces if piece.startswith("<")])
    path = tmp_path_factory.mktemp("t5") / "tokenizer.json"
    library.save(str(path))
    # The table is rounded up to a multiple of 64 rows, as published T5 tables are.
    folder = make_model(
        "t5",
        config={"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1},
        tokenizer=("huggingface", {path.name: path}),
    )
    return martlet.load(folder, device="cpu")


def test_gpt2_writes_whole_characters_from_bytes(gpt2):
    for seed in range(4):
        pieces = list(gpt2.write(TEXT, max_tokens=60, seed=seed, stream=True))
        whole = gpt2.write(TEXT, max_tokens=60, seed=seed)
        assert "".join(pieces) == whole


def test_gpt2_ends_at_its_end_of_text(gpt2):
    request = write(gpt2._model, TEXT, SamplingParams())
    assert request.eos_ids == {gpt2.tokenizer.special.eos}
    assert not request.constraint.suppressed()[gpt2.tokenizer.special.eos]


def test_llama_writes_on_past_its_context_and_every_window_begins_with_bos(llama):
    bos, ids = llama.tokenizer.special.bos, llama.tokenizer.encode(TEXT)
    assert bos == llama.tokenizer.vocab_size - 2
    request = write(llama._model, TEXT, SamplingParams())
    assert request.context == Context((bos, *ids))
    assert request.eos_ids == {bos + 1}
    assert request.constraint.suppressed()[bos]
    assert request.window.restart(range(100)) == Context((bos, *range(100)[-32:]))
    assert "".join(llama.write(TEXT, max_tokens=150, seed=3, stream=True)) == llama.write(
        TEXT, max_tokens=150, seed=3
    )


def test_a_prompt_that_fills_the_context_of_a_llama_counts_its_bos(llama):
    word = "世"  # not in the text that the vocabulary was made from: one token a byte
    assert len(llama.tokenizer.encode(word * 21)) == 63
    assert len(write(llama._model, word * 21, SamplingParams()).context.decoder_ids) == 33
    assert len(complete(llama._model, word * 21, SamplingParams()).context.decoder_ids) == 64
    with pytest.raises(ContextLengthError, match="67 tokens"):
        llama.generate(word * 22)


def test_llama_scores_a_text_after_bos(llama):
    bos = llama.tokenizer.special.bos
    context, ids = llama.tokenizer.encode("天空"), llama.tokenizer.encode("hello")
    for before, shown in (([bos, *context], "天空"), ([bos], "")):
        logprobs = torch.log_softmax(llama.logits([*before, *ids]), dim=1)[len(before) - 1 :]
        expected = sum(float(logprobs[row, i]) for row, i in enumerate(ids))
        # float32 sums of a few terms near -6
        assert llama.score(shown, "hello").logprob == pytest.approx(expected, rel=1e-5)
    whole = score_tokens(llama._model, ids[:1], ids[1:])
    text = llama.score_text("hello")
    assert text.negative_log_likelihood == pytest.approx(-sum(whole), rel=1e-5)
    assert llama.score_text(TEXT * 8).num_tokens == len(llama.tokenizer.encode(TEXT * 8)) - 1
    assert len(score_tokens(llama._model, [], [1] * 200)) == 200


def test_a_llama_whose_vocabulary_has_no_bos_reads_the_text_alone(make_model, tmp_path):
    path, size = _byte_level(tmp_path, "</s>")
    folder = make_model(
        "llama",
        config={"vocab_size": size, "bos_token_id": 1, "eos_token_id": size - 1},
        tokenizer=("huggingface", {path.name: path}),
    )
    model = martlet.load(folder, device="cpu")
    assert write(model._model, TEXT, SamplingParams()).context == Context(
        tuple(model.tokenizer.encode(TEXT))
    )


def test_a_llama_of_many_positions_needs_memory_only_for_those_in_use(make_model, tmp_path):
    path, size = _byte_level(tmp_path, "<s>", "</s>")
    folder = make_model(
        "llama",
        config={"vocab_size": size, "max_position_embeddings": 1 << 20},
        tokenizer=("huggingface", {path.name: path}),
    )
    model = martlet.load(folder, device="cpu", ram="256MiB")
    assert model.generate(TEXT, max_tokens=3, seed=1) is not None


def test_t5_fills_with_its_sentinels(t5):
    special = t5.tokenizer.special
    assert len(special.sentinels) == 4
    fill = t5.fill("a b__c<blank>d", max_tokens=6, seed=1)
    assert len(fill.blanks) == 2
    assert all(blank.token_ids for blank in fill.blanks)
    shown = {i for blank in fill.blanks for i in blank.token_ids}
    assert not shown & special.control_ids()
    assert max(shown) < t5.tokenizer.vocab_size  # rows that only round up the table


def test_t5_does_what_a_prompt_says(t5):
    request = complete(t5._model, "a b", SamplingParams())
    special = t5.tokenizer.special
    ids = t5.tokenizer.encode("a b")
    assert request.context == Context((special.pad,), (*ids, special.eos))
    assert t5.generate("a b", max_tokens=5, seed=0)
    assert t5.score("a b", "c d").num_tokens == len(t5.tokenizer.encode("c d"))


def test_t5_has_no_limit_of_input_but_memory(t5):
    assert t5._model.max_input_tokens is None
    assert t5.fill("a b c d " * 100 + "__", max_tokens=2, seed=0).blanks[0].text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_gives_about_what_the_cpu_gives(tiny_cpm1, tiny_cpm2):
    for folder in (tiny_cpm1, tiny_cpm2):
        on_cpu = martlet.load(folder, device="cpu").score("天空是", "蔚蓝色").logprob
        model = martlet.load(folder, device="cuda")
        assert model.plan.device == "cuda"
        # float16 against float32 over two layers
        assert abs(model.score("天空是", "蔚蓝色").logprob - on_cpu) < 0.02 * abs(on_cpu)
        assert model.generate("天空是", max_tokens=5, seed=1)
