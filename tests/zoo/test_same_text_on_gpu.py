"""The bundled models say the same on a GPU as on a CPU when nothing is drawn by chance.

Activations are float16 there and float32 here, so two tokens whose logits differ by less than the
rounding (about 0.01) may change places; these prompts have none such.
"""

import pytest

import martlet
from martlet.hub.catalogue import resolve

pytestmark = pytest.mark.gpu


def _say(name, device, **options):
    folder = resolve(name)
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"the weights of {name} are not here")
    model = martlet.load(name, device=device, **options)
    if name == "cpm2-mini":
        return model.fill("却说<blank>推开门，只见<blank>，大吃一惊。", temperature=0).text
    if name == "eva-mini":
        return model.chat([{"role": "user", "content": "先生今日往何处去？"}], temperature=0)
    return model.write("次日清晨，天降大雪，", max_tokens=64, temperature=0)


@pytest.mark.parametrize("name", ["cpm1-mini", "cpm2-mini", "eva-mini"])
def test_a_bundled_model_says_the_same_on_both(name):
    assert _say(name, "cuda") == _say(name, "cpu")
