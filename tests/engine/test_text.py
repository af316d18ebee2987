import martlet


def test_a_cancelled_text_ends_after_its_token_and_tells_how_it_went(tiny_cpm1):
    model = martlet.load(tiny_cpm1)
    with model.write("却说那老汉", max_tokens=1000, seed=1, stream=True) as stream:
        begun = next(stream)
        stream.cancel()
        rest = "".join(stream)
    assert stream.stats is not None
    assert stream.stats.finish_reason == "cancelled"
    assert stream.stats.output_tokens < 10
    whole = model.write("却说那老汉", max_tokens=20, seed=1)
    assert whole.startswith(begun + rest)
