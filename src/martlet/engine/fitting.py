"""Whether a model's files hold what its configuration says, told before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from martlet.checkpoint.planned import PlannedWeight
from martlet.engine.model_files import ModelFiles
from martlet.errors import ModelFileError
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.models.family import TASKS_OF_FAMILY
from martlet.quantization.formats import WeightFormat

__all__ = ["require_fitting"]


def require_fitting(files: ModelFiles, specs: Sequence[BlockSpec]) -> None:
    """Check the family, the blocks, and the shape and form of every tensor.

    Raises:
        ModelFileError: they are not those of the architecture, whose blocks are ``specs``, or the
            family is not known.
    """
    if files.family not in TASKS_OF_FAMILY:
        raise ModelFileError(
            f"{files.location}: family is {files.family!r:.40}, this Martlet knows "
            f"{', '.join(TASKS_OF_FAMILY)}; a newer one may know it"
        )
    if odd := sorted({spec.name for spec in specs} ^ set(files.block_names)):
        raise ModelFileError(
            f"{files.location}: config.json and martlet.json do not name the same blocks "
            f"({', '.join(odd[:3])}); convert the model again"
        )
    for spec in specs:
        weights = {weight.name: weight for weight in files.block_weights(spec.name)}
        for tensor in spec.tensors:
            _check_tensor(files.location, spec, tensor, weights)


def _check_tensor(
    location: Path, block: BlockSpec, spec: TensorSpec, weights: Mapping[str, PlannedWeight]
) -> None:
    name = block.prefix + spec.name
    weight = weights.get(name)
    if weight is None:
        raise ModelFileError(f"{location}: tensor {name} is missing; convert the model again")
    if weight.shape != spec.shape:
        raise ModelFileError(
            f"{location}: tensor {name} has the shape {weight.shape}, config.json makes it "
            f"{spec.shape}; they do not belong together"
        )
    if isinstance(weight.form, WeightFormat):
        if spec.kind == "other":
            raise ModelFileError(
                f"{location}: tensor {name} is {weight.form.name}, which only the matrices of "
                "linears and embeddings may be; convert the model again"
            )
    elif not weight.form.is_floating_point:
        raise ModelFileError(f"{location}: tensor {name} has the type {weight.form}, not a float")
