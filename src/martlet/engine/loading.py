"""From a model's files to a plan, and from a plan to a model that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from martlet.device.probe import Gpu, probe_ram
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.fitting import require_fitting
from martlet.engine.folder_source import FolderSource
from martlet.engine.generator import Generator
from martlet.engine.load_options import LoadOptions
from martlet.engine.loaded_forms import LoadedForms
from martlet.engine.loaded_weights import LoadedWeights, LoadProgress, StoredBlocks
from martlet.engine.machine import (
    ASSUMED_CONTEXT_BYTES,
    GpuState,
    capped,
    compute_dtype,
    first_gpu,
    measured_bandwidth,
    probe_gpu_state,
)
from martlet.engine.model_files import ModelFiles
from martlet.engine.parts import lay_out_parts, work_of
from martlet.engine.planned_limits import TextDemands, limits_to_try, plan_for_texts
from martlet.engine.task_files import chat_template_of, end_ids_of
from martlet.engine.tasks import DEFAULT_MAX_INPUT_TOKENS, TaskModel
from martlet.errors import CapacityError, ModelFileError, VocabularyError
from martlet.memory.executor import BlockSource, Executor, ResidentExecutor
from martlet.memory.layout import PartLayout
from martlet.memory.plan import (
    Bandwidth,
    BlockSize,
    Budget,
    DeviceKind,
    Plan,
    Work,
    make_plan,
)
from martlet.memory.streamed import load_streamed
from martlet.models.architecture import Architecture, BlockSpec
from martlet.models.config import load_architecture
from martlet.tokenizers.load import check_vocabulary
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["OpenedModel", "PlannedLoad"]

_PREDICTED_TOKENS = 256  # of the prompt for which the time to the first token is predicted


@dataclass(frozen=True)
class PlannedLoad:
    """A plan, and what the executor needs to know beside it; ``parts`` where a GPU computes.

    ``limits`` are the texts that its cache and workspace are for, ``forms`` what the weights
    become.
    """

    plan: Plan
    limits: BatchLimits
    device: torch.device
    dtype: torch.dtype
    forms: LoadedForms
    parts: Mapping[str, PartLayout] | None = None


class OpenedModel:
    """A model whose files fit each other; no weight has been read.

    Raises:
        ModelFileError: the weights are not those of the architecture, or the family is not known.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.architecture: Architecture = load_architecture(files.config, files.location)
        require_fitting(files, self.architecture.block_specs())

    @property
    def max_input_tokens(self) -> int | None:
        """What the encoder reads at most: generation_config.json, config.json, or the family says.

        None where nothing does, as for T5.
        """
        family = self.files.family
        given = self.files.generation.get("max_input_tokens")
        if given is None and family == "cpm2":
            given = self.files.config.get("n_positions")
        if given is None:
            return DEFAULT_MAX_INPUT_TOKENS.get(family)
        if type(given) is not int or not 8 <= given <= 1 << 20:
            raise ModelFileError(
                f"{self.files.location}: the input limit is {given!r:.40} tokens; "
                "max_input_tokens of generation_config.json must be from 8 to 1048576"
            )
        return given

    @property
    def suppress_tokens(self) -> tuple[int, ...]:
        """Ids that generation_config.json forbids in any text (Hugging Face's name)."""
        given = self.files.generation.get("suppress_tokens") or []
        vocab_size = self.architecture.vocab_size
        sound = isinstance(given, list) and all(
            type(token_id) is int and 0 <= token_id < vocab_size for token_id in given
        )
        if not sound:
            raise ModelFileError(
                f"{self.files.location}: suppress_tokens of generation_config.json is "
                f"{given!r:.60}; it must be a list of ids from 0 to {vocab_size - 1}"
            )
        return tuple(given)

    def compute_dtype(self, capability: tuple[int, int] | None) -> torch.dtype:
        """The type of the activations on a card of that capability, on a processor for None."""
        return compute_dtype(self.files.family, capability, is_bfloat16=self._is_bfloat16())

    def _is_bfloat16(self) -> bool:
        """Whether config.json or a weight says that the model was trained in bfloat16."""
        if self.files.config.get("dtype") == "bfloat16":
            return True
        blocks = (self.files.block_weights(block) for block in self.files.block_names)
        return any(weight.form == torch.bfloat16 for block in blocks for weight in block)

    def plan(self, options: LoadOptions) -> PlannedLoad:
        """The plan for this machine; with device "auto" a GPU that suffices comes before the CPU.

        Raises:
            CapacityError: the model does not fit.
            UsageError: device "cuda" without a GPU that torch can use.
        """
        gpu = first_gpu(options.device)
        if gpu is not None:
            try:
                return self._plan_here(gpu, options)
            except CapacityError:
                if options.device == "cuda":
                    raise
        return self._plan_cpu(options)

    def plan_for_card(self, gpu: Gpu, bandwidth: Bandwidth, options: LoadOptions) -> Plan:
        """The plan, with the times to expect, for a graphics card that need not be here.

        Raises:
            CapacityError: the model does not fit.
        """
        state = GpuState(ASSUMED_CONTEXT_BYTES, gpu.free_bytes, gpu.compute_capability)
        planned = self._plan_gpu(torch.device("cuda"), state, options)
        return self._predicted(planned, bandwidth).plan

    def load(
        self, name: str, planned: PlannedLoad, progress: LoadProgress | None = None
    ) -> TaskModel:
        """The model, ready to run; ``name`` is what messages call it.

        Raises:
            VocabularyError: there is no tokenizer, or it does not belong to the weights.
            ModelFileError: a weight is infinite or not a number.
            CapacityError: memory ran out although the plan said that it would not.
        """
        tokenizer = self.tokenizer()
        executor = self._executor(planned, progress)
        generator = Generator(self.architecture, executor, tokenizer)
        return TaskModel(
            name,
            self.files.family,
            generator,
            self.max_input_tokens,
            self.suppress_tokens,
            end_ids_of(self.files, tokenizer),
            chat_template_of(self.files, tokenizer, name),
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which fits the model.

        Raises:
            VocabularyError: there is none, or it does not belong to the weights.
            ModelFileError: a file of it is damaged.
        """
        tokenizer = self.files.load_tokenizer()
        if tokenizer is None:
            raise VocabularyError(
                f"{self.files.location} has no tokenizer; put its files there, or make a model "
                "folder with martlet convert and --tokenizer"
            )
        check_vocabulary(tokenizer, self.architecture.vocab_size)
        return tokenizer

    def stored_blocks(self) -> BlockSource:
        """The weights as they are stored, for compressing them."""
        return StoredBlocks(self.files, tuple(self.architecture.block_specs()))

    def forms(self, quantize: str | None) -> LoadedForms:
        """What the weights become where ``quantize`` is asked for; None = what is usual."""
        return LoadedForms(self.files, tuple(self.architecture.block_specs()), quantize)

    def _executor(self, planned: PlannedLoad, progress: LoadProgress | None) -> Executor:
        device, dtype = planned.device, planned.dtype
        if planned.parts is None:
            weights = LoadedWeights(planned.forms, dtype, progress)
            return ResidentExecutor(planned.plan, weights, device, dtype)
        source = FolderSource(self.files, planned.forms.specs, device, progress)
        return load_streamed(planned.plan, planned.parts, source, device, dtype)

    def specs(self) -> dict[str, BlockSpec]:
        """The blocks of the architecture by name."""
        return {spec.name: spec for spec in self.architecture.block_specs()}

    def _plan_cpu(self, options: LoadOptions) -> PlannedLoad:
        dtype = self.compute_dtype(None)
        forms = self.forms(options.quantize)
        sizes = [
            BlockSize(spec.name, forms.nbytes(spec, dtype), has_int4=forms.has_int4)
            for spec in forms.specs
        ]
        budget = Budget(gpu_bytes=0, ram_bytes=_ram_bytes(options))
        demands = TextDemands(self.architecture, options, dtype)
        plan, limits = self._make_plan(sizes, budget, demands, options)
        return PlannedLoad(plan, limits, torch.device("cpu"), dtype, forms)

    def _plan_here(self, gpu: Gpu, options: LoadOptions) -> PlannedLoad:
        device = torch.device("cuda", gpu.index)
        planned = self._plan_gpu(device, probe_gpu_state(device), options)
        return self._predicted(planned, measured_bandwidth(device))

    def _plan_gpu(self, device: torch.device, state: GpuState, options: LoadOptions) -> PlannedLoad:
        dtype = self.compute_dtype(state.capability)
        forms = self.forms(options.quantize)
        parts = lay_out_parts(forms.specs, forms.format_of, dtype)
        sizes = [
            BlockSize(part.name, part.nbytes, has_int4=forms.has_int4) for part in parts.values()
        ]
        gpu_bytes = capped(state.available_bytes, _size(options.gpu_memory))
        budget = Budget(gpu_bytes, _ram_bytes(options))
        demands = TextDemands(self.architecture, options, dtype, state)
        plan, limits = self._make_plan(sizes, budget, demands, options)
        return PlannedLoad(plan, limits, device, dtype, forms, parts)

    def _make_plan(
        self,
        sizes: list[BlockSize],
        budget: Budget,
        demands: TextDemands,
        options: LoadOptions,
    ) -> tuple[Plan, BatchLimits]:
        threads = options.num_threads or torch.get_num_threads()
        device: DeviceKind = "cpu" if demands.state is None else "cuda"
        return plan_for_texts(
            limits_to_try(self.architecture, self.max_input_tokens, options),
            budget.of("ram" if demands.state is None else "gpu"),
            demands.of,
            lambda demand: make_plan(sizes, device, budget, demand, threads, options.num_threads),
            demands.streamed_chunk_tokens,
        )

    def _predicted(self, planned: PlannedLoad, bandwidth: Bandwidth) -> PlannedLoad:
        assert planned.parts is not None
        work = self._work(planned.parts)
        return replace(planned, plan=planned.plan.predicted(work, bandwidth))

    def _work(self, parts: Mapping[str, PartLayout]) -> Work:
        """A text of usual length."""
        limits = (self.max_input_tokens, self.architecture.max_positions, _PREDICTED_TOKENS)
        num_tokens = min(limit for limit in limits if limit)
        return work_of(parts, num_tokens, self.architecture)


def sampling_defaults(generation: Mapping[str, Any], task: str) -> list[Mapping[str, Any]]:
    """The sampling parameters that came with a model, those for the task first.

    generation_config.json may have ``tasks``: {"fill": {...}, ...} beside its general fields, and
    Hugging Face's ``max_new_tokens`` and ``do_sample`` are understood.
    """
    general = dict(generation)
    if "max_new_tokens" in general:
        general.setdefault("max_tokens", general["max_new_tokens"])
    if general.get("do_sample") is False:
        general["temperature"] = 0.0
    tasks = generation.get("tasks")
    own = tasks.get(task) if isinstance(tasks, Mapping) else None
    return [own if isinstance(own, Mapping) else {}, general]


def _size(wish: str | int | None) -> int | None:
    assert wish is None or isinstance(wish, int), "sizes are parsed by LoadOptions"
    return wish


def _ram_bytes(options: LoadOptions) -> int:
    return capped(probe_ram().available_bytes, _size(options.ram))
