"""Which format each matrix of a model takes, and how many bits that makes for a weight."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.absmax import QUANTIZED_KINDS
from martlet.errors import UsageError
from martlet.models.architecture import FIXED, BlockSpec, TensorSpec
from martlet.quantization.formats import WeightFormat, named_format

__all__ = ["Recipe", "bits_per_weight"]

_LEAVE = "none"


@dataclass(frozen=True)
class Recipe:
    """Formats for the matrices of a model; norms, biases and position tables stay floats.

    ``head`` is for the matrix of logits, ``embedding`` for the table of tokens; a table that is
    both takes the wider of the two. ``edges`` is for the first and the last block of each stack.
    None means: as ``default``. ``rules`` come before all of these: pairs of a pattern for names in
    the file ("*.o_proj.weight") and a format, or None to leave the matrix as it is; the first
    pattern that fits decides.
    """

    default: WeightFormat
    head: WeightFormat | None = None
    embedding: WeightFormat | None = None
    edges: WeightFormat | None = None
    rules: tuple[tuple[str, WeightFormat | None], ...] = ()

    @classmethod
    def parse(
        cls,
        format: str,
        *,
        head: str | None = None,
        embedding: str | None = None,
        edges: str | None = None,
        rules: Iterable[str] = (),
    ) -> Recipe:
        """A recipe of names, as options give them; a rule is "PATTERN=FORMAT" or "PATTERN=none".

        Raises:
            UsageError: a name is no format, or a rule is not of that form.
        """
        return cls(
            named_format(format, "format"),
            None if head is None else named_format(head, "head"),
            None if embedding is None else named_format(embedding, "embedding"),
            None if edges is None else named_format(edges, "edges"),
            tuple(_parse_rule(rule) for rule in rules),
        )

    def format_of(
        self, name: str, spec: TensorSpec, block: BlockSpec, specs: Sequence[BlockSpec]
    ) -> WeightFormat | None:
        """The format of a tensor, None for floats.

        ``name`` is as in the file; ``specs`` are all blocks of the model, ``block`` is among them.
        """
        if spec.kind not in QUANTIZED_KINDS:
            return None
        for pattern, format in self.rules:
            if fnmatch.fnmatchcase(name, pattern):
                return format
        if block.name == FIXED:
            return self._of_table(spec, block)
        return (self.edges if block.name in _edges(specs) else None) or self.default

    def require_matches(self, specs: Sequence[BlockSpec]) -> None:
        """Check that every rule is about some matrix of the model.

        Raises:
            UsageError: a pattern fits none, so it is misspelt or for another architecture.
        """
        names = [
            block.prefix + spec.name
            for block in specs
            for spec in block.tensors
            if spec.kind in QUANTIZED_KINDS
        ]
        for pattern, _ in self.rules:
            if not fnmatch.filter(names, pattern):
                raise UsageError(
                    f"the rule {pattern!r:.80} fits no matrix of the model; "
                    f"names are like {names[0]} and {names[-1]}"
                )

    def to_json(self) -> dict[str, object]:
        """The parts that were given, by the names of formats."""
        named = {
            "default": self.default,
            "head": self.head,
            "embedding": self.embedding,
            "edges": self.edges,
        }
        given: dict[str, object] = {k: v.name for k, v in named.items() if v is not None}
        if self.rules:
            given["rules"] = [f"{p}={f.name if f else _LEAVE}" for p, f in self.rules]
        return given

    def _of_table(self, spec: TensorSpec, block: BlockSpec) -> WeightFormat:
        if spec.kind != "embedding":
            return self.head or self.default
        embedding = self.embedding or self.default
        if any(other.kind == "linear" for other in block.tensors):
            return embedding
        head = self.head or self.default
        # Without a head of its own a model computes its logits with the embedding.
        return max(head, embedding, key=lambda format: format.nbytes(*spec.shape))


def bits_per_weight(weights: Iterable[PlannedWeight]) -> float:
    """Bits that a file spends on a weight, on average: integers, scales, and floats as they are."""
    total_bytes = total_weights = 0
    for weight in weights:
        total_bytes += weight.nbytes
        total_weights += weight.numel
    return 8 * total_bytes / total_weights


def _edges(specs: Sequence[BlockSpec]) -> Iterator[str]:
    """Names of the first and the last block of each stack."""
    stacks: dict[str, list[str]] = {}
    for block in specs:
        if block.name != FIXED:
            stacks.setdefault(block.name.partition(".")[0], []).append(block.name)
    for names in stacks.values():
        yield from {names[0], names[-1]}


def _parse_rule(rule: str) -> tuple[str, WeightFormat | None]:
    pattern, equals, name = rule.rpartition("=")
    if not equals or not pattern:
        raise UsageError(
            f"the rule {rule!r:.80} is not PATTERN=FORMAT, as in '*.o_proj.weight=int8'"
        )
    return pattern, None if name == _LEAVE else named_format(name, f"the format of {pattern!r:.80}")
