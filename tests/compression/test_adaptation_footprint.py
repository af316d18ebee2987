"""What an adaptation will take, before it begins."""

import torch

from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.adaptation_footprint import adaptation_footprint
from martlet.compression.recipe import Recipe


def _footprint(model, samples, rows_at_once=1, batch_size=2, dtype=torch.float32):
    specs = model.architecture.block_specs()
    recipe = Recipe.parse("int4-g32")
    weights = {
        spec.name: [
            PlannedWeight(
                tensor.name,
                tensor.shape,
                recipe.format_of(tensor.name, tensor, spec, specs) or torch.float32,
            )
            for tensor in spec.tensors
        ]
        for spec in specs
    }
    return adaptation_footprint(
        model.architecture, weights, samples, rows_at_once, batch_size, dtype
    )


def test_a_trained_integer_takes_twenty_bytes(tiny_model, random_samples):
    model = tiny_model("llama")
    footprint = _footprint(model, random_samples(model.architecture, [10] * 4))
    # Queries and output 32 x 32, keys and values 16 x 32, three matrices of 48 x 32.
    assert footprint.all_levels_bytes == 20 * (2 * 1024 + 2 * 512 + 3 * 1536)
    assert footprint.smallest_levels_bytes == 20 * 1536


def test_more_samples_take_more_of_where_they_wait_alone(tiny_model, random_samples):
    model = tiny_model("t5")
    few = _footprint(model, random_samples(model.architecture, [10] * 4))
    many = _footprint(model, random_samples(model.architecture, [10] * 40))
    assert many.running_bytes == few.running_bytes
    # Both models' states and the target in the decoder, both encoders' outputs: 36 samples of 13
    # tokens (the encoder's, which are more) of 32 floats.
    assert many.model_bytes - few.model_bytes == 5 * 36 * 13 * 32 * 4


def test_rows_at_once_take_memory_of_the_device_and_half_precision_less(tiny_model, random_samples):
    model = tiny_model("gpt2")
    samples = random_samples(model.architecture, [30] * 8)
    one, four = _footprint(model, samples), _footprint(model, samples, rows_at_once=4)
    assert four.running_bytes > one.running_bytes
    half = _footprint(model, samples, dtype=torch.bfloat16)
    assert half.running_bytes < one.running_bytes
    assert half.all_levels_bytes == one.all_levels_bytes
