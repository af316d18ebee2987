"""Both phases together, on tiny models: better than the start, the same after an interruption."""

import dataclasses

import pytest
import torch

from martlet.compression.adaptation import adapt_blocks
from martlet.compression.adaptation_task import AdaptationSettings, AdaptationTask
from martlet.compression.block_training import BlockSettings
from martlet.compression.compressor import Placement
from martlet.compression.nearest import quantize_matrix
from martlet.compression.training_files import TrainingFiles
from martlet.compression.tuning import TuningSettings
from martlet.compression.work_folder import WorkFolder
from martlet.quantization.formats import parse_format
from martlet.quantization.scheme import QuantizedTensor

PLACEMENT = Placement(torch.device("cpu"), torch.float32)
SETTINGS = AdaptationSettings(
    BlockSettings(iterations=8, rounding_rate=0.02, scale_rate=2e-3, seed=1),
    TuningSettings(
        iterations=12,
        learning_rate=1e-3,
        batch_size=4,
        look_every=4,
        patience=9,
        save_every=3,
        seed=1,
    ),
    num_held_out=4,
    rows_at_once=2,
    top_k=16,
)


class Rounded:
    """The model with its matrices rounded to nearest, in int4; embedding and head in int8."""

    def __init__(self, model, name="int4-g32"):
        self._blocks = {}
        for spec in model.architecture.block_specs():
            form = parse_format("int8" if spec.name == "fixed" else name)
            kinds = {tensor.name: tensor.kind for tensor in spec.tensors}
            self._blocks[spec.name] = {
                name: weight if kinds[name] == "other" else quantize_matrix(weight, form)
                for name, weight in model.block(spec.name).items()
            }

    def block(self, name):
        return self._blocks[name]


class Interrupted(BaseException):
    """As Ctrl-C."""


class Interrupting:
    """A work folder's files that give out after so many writes."""

    def __init__(self, files, num_writes):
        self._files, self._left = files, num_writes

    def _count(self):
        self._left -= 1
        if self._left < 0:
            raise Interrupted

    def load_block(self, spec):
        return self._files.load_block(spec)

    def save_block(self, spec, weights):
        self._count()
        self._files.save_block(spec, weights)

    def state(self, name):
        return InterruptingState(self._files.state(name), self._count)


@dataclasses.dataclass
class InterruptingState:
    state: object
    count: object

    def load(self):
        return self.state.load()

    def save(self, state):
        self.count()
        self.state.save(state)


def _bits(result, model):
    """All numbers of the adapted model, flat."""
    return {
        (spec.name, name, part): tensor
        for spec in model.architecture.block_specs()
        for name, weight in result.block(spec.name).items()
        for part, tensor in (
            {"": weight} if isinstance(weight, torch.Tensor) else vars(weight)
        ).items()
        if isinstance(tensor, torch.Tensor)
    }


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def make_task(model, random_samples):
    samples = random_samples(model.architecture, [12, 15, 10, 14] * 5)
    student = Rounded(model)

    def make(files, settings=SETTINGS):
        return AdaptationTask(
            model.architecture, student, model, samples, PLACEMENT, settings, files
        )

    return make


def _adapt(make_task, folder, settings=SETTINGS, num_writes=10**6):
    with WorkFolder(folder, "gpt2", {"test": 1}) as work:
        return adapt_blocks(make_task(Interrupting(TrainingFiles(work), num_writes), settings))


@pytest.fixture(scope="module")
def uninterrupted(make_task, tmp_path_factory):
    return _adapt(make_task, tmp_path_factory.mktemp("whole") / "model")


def test_both_phases_bring_the_model_nearer_to_the_float_one(uninterrupted, model):
    result = uninterrupted
    assert result.kept == "tuned"
    assert result.loss_end < result.loss_blocks < result.loss_start
    assert len(result.blocks) == len(model.blocks) - 1
    assert all(block.after <= block.before for block in result.blocks)
    assert [look.iteration for look in result.looks] == [0, 4, 8, 12]


def test_formats_stay_as_they_were(uninterrupted, model):
    rounded = Rounded(model)
    for spec in model.architecture.block_specs():
        for name, weight in uninterrupted.block(spec.name).items():
            before = rounded.block(spec.name)[name]
            assert type(weight) is type(before)
            assert weight.shape == before.shape
            if not isinstance(weight, torch.Tensor):
                assert weight.format == before.format


@pytest.mark.parametrize("num_writes", [1, 4, 7])
def test_what_was_interrupted_ends_with_the_same_bits(
    num_writes, uninterrupted, make_task, model, tmp_path
):
    with pytest.raises(Interrupted):
        _adapt(make_task, tmp_path / "model", num_writes=num_writes)
    result = _adapt(make_task, tmp_path / "model")
    expected = _bits(uninterrupted, model)
    found = _bits(result, model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert result.looks == uninterrupted.looks
    assert result.blocks == uninterrupted.blocks


def test_ruinous_rates_leave_the_model_as_it_was(make_task, model, tmp_path):
    settings = dataclasses.replace(
        SETTINGS,
        block=BlockSettings(iterations=0, rounding_rate=0.0, scale_rate=0.0),
        tuning=dataclasses.replace(SETTINGS.tuning, learning_rate=30.0),
    )
    result = _adapt(make_task, tmp_path / "model", settings)
    assert result.kept == "start"
    assert result.loss_end == result.loss_start
    rounded = Rounded(model)
    for spec in model.architecture.block_specs():
        for name, weight in result.block(spec.name).items():
            before = rounded.block(spec.name)[name]
            parts = [(weight, before)]
            if not isinstance(weight, torch.Tensor):
                parts = [(weight.data, before.data), (weight.scale, before.scale)]
            assert all(torch.equal(own, other) for own, other in parts)


def test_training_ends_early_when_nothing_gets_better(make_task, tmp_path):
    settings = dataclasses.replace(
        SETTINGS,
        block=BlockSettings(iterations=0, rounding_rate=0.0, scale_rate=0.0),
        tuning=dataclasses.replace(SETTINGS.tuning, learning_rate=30.0, patience=1),
    )
    assert _adapt(make_task, tmp_path / "model", settings).iterations == 4


def test_progress_never_goes_back_and_comes_to_the_end(make_task, tmp_path):
    heard = []
    with WorkFolder(tmp_path / "model", "gpt2", {"test": 1}) as work:
        adapt_blocks(make_task(TrainingFiles(work)), lambda *values: heard.append(values))
    done = [values[0] for values in heard]
    assert done == sorted(done)
    assert heard[-1][0] == heard[-1][1]
    assert "end to end" in heard[-1][2]


def test_int8_rows_with_half_precision_scales_are_kept_as_such(model, random_samples, tmp_path):
    class Half(Rounded):
        def block(self, name):
            return {
                key: QuantizedTensor(weight.data, weight.scale.half())
                if isinstance(weight, QuantizedTensor)
                else weight
                for key, weight in Rounded(model, "int8").block(name).items()
            }

    samples = random_samples(model.architecture, [12, 15, 10, 14, 9, 8])
    settings = dataclasses.replace(SETTINGS, num_held_out=2)
    with WorkFolder(tmp_path / "model", "gpt2", {"test": 1}) as work:
        task = AdaptationTask(
            model.architecture,
            Half(model),
            model,
            samples,
            PLACEMENT,
            settings,
            TrainingFiles(work),
        )
        result = adapt_blocks(task)
    weights = [w for w in result.block("decoder.0").values() if isinstance(w, QuantizedTensor)]
    assert weights and all(weight.scale.dtype == torch.float16 for weight in weights)


@pytest.mark.gpu
@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_gpu_adapts_as_the_processor_does(
    name, dtype, is_resident, tiny_model, random_samples, tmp_path
):
    model = tiny_model(name)
    samples = random_samples(model.architecture, [12, 15, 10, 14] * 5)
    losses = {}
    for device, own_dtype in (("cpu", torch.float32), ("cuda", dtype)):
        with WorkFolder(tmp_path / device, "gpt2", {"test": 1}) as work:
            task = AdaptationTask(
                model.architecture,
                Rounded(model),
                model,
                samples,
                Placement(torch.device(device), own_dtype),
                SETTINGS,
                TrainingFiles(work),
                is_resident or device == "cpu",
            )
            result = adapt_blocks(task)
        assert result.loss_end < result.loss_start
        losses[device] = result.loss_start, result.loss_end
    # bfloat16 activations blur predictions by about as much as int8 weights would.
    tolerance = 0.02 if dtype == torch.float32 else 0.5
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)
