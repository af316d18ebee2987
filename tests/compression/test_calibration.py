import torch

from martlet.compression.calibration import BlockObserver, InputStatistics
from martlet.compression.walk import Walk
from martlet.models.architecture import LinearInput
from martlet.quantization.scheme import ObservedWeight

CPU = torch.device("cpu")


def test_moments_and_magnitudes_are_means_over_all_rows():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    statistics = InputStatistics(8, CPU)
    for part in rows.split(7):
        statistics.add(part.half())
    exact = rows.half().float()
    torch.testing.assert_close(statistics.hessian(), exact.t() @ exact / 30)
    torch.testing.assert_close(statistics.magnitude(), exact.abs().mean(0))
    assert statistics.num_rows == 30


def test_an_input_is_looked_at_once_however_many_read_it(tiny_model):
    model = tiny_model("llama")
    inputs = model.architecture.linear_inputs("decoder")
    weights = BlockObserver(inputs, "decoder", CPU).observed(model.block("decoder.0"))
    observed = [name for name, weight in weights.items() if isinstance(weight, ObservedWeight)]
    assert observed == [
        "self_attn.q_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.down_proj.weight",
    ]


def test_padding_counts_nothing(tiny_model, random_samples):
    model = tiny_model("t5")
    architecture = model.architecture
    samples = random_samples(architecture, [30, 7, 19, 2])
    hessians = []
    for batch_size in (1, 4):
        walk = Walk(architecture, samples, CPU, torch.float32, batch_size)
        walk.enter(model.block("fixed"), "encoder")
        for index in range(2):
            walk.run("encoder", index, model.block(f"encoder.{index}"))
        walk.leave(model.block("fixed"), "encoder")
        walk.enter(model.block("fixed"), "decoder")
        observer = BlockObserver(architecture.linear_inputs("decoder"), "decoder", CPU)
        weights = observer.observed(model.block("decoder.0"))
        walk.run("decoder", 0, weights, keep=False, observe=observer.begin)
        hessians.append({s: g.hessian() for s, g in observer.statistics.items()})
        counts = {s.is_encoder_output: g.num_rows for s, g in observer.statistics.items()}
        assert counts == {False: 58, True: 58 + 4 * 3}
    for source, alone in hessians[0].items():
        assert isinstance(source, LinearInput)
        torch.testing.assert_close(hessians[1][source], alone, rtol=1e-3, atol=1e-4)
