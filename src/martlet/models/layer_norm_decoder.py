"""What decoders behind layer norms share: GPT-2, GPT-J, GPT-NeoX and BLOOM.

A family's own file says what its config.json may hold, which tensors its layers have, how positions
come in and what a block computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from martlet.errors import ModelFileError
from martlet.kernels import ops
from martlet.layers.attention import Heads
from martlet.layers.linear import vector
from martlet.layers.norm import layer_norm
from martlet.models.architecture import LinearInput, Stack, TensorSpec, Weights
from martlet.models.decoder_only import DecoderOnly
from martlet.models.specs import norm_specs

__all__ = ["Ends", "LayerNormDecoder", "require_whole_heads"]


@dataclass(frozen=True)
class Ends:
    """The weights before and behind all layers by name: token table, final norm, output matrix.

    A table that ``is_tied`` is the output matrix as well. ``eps`` is that of all norms.
    """

    table: str
    norm: str
    head: str
    eps: float
    is_tied: bool

    @property
    def output(self) -> str:
        """What logits are computed with."""
        return self.table if self.is_tied else self.head


class LayerNormDecoder(DecoderOnly):
    """One stack of blocks whose norms have biases; every head of queries has its own keys."""

    def __init__(
        self, ends: Ends, vocab_size: int, num_layers: int, heads: tuple[int, int], positions: int
    ) -> None:
        num_heads, head_dim = heads
        super().__init__(vocab_size, num_layers, num_heads, head_dim, positions)
        self._ends = ends
        self._heads = Heads(num_heads, num_heads, head_dim, scale=head_dim**-0.5)

    def _end_specs(self, *others: TensorSpec) -> list[TensorSpec]:
        """The tensors of the fixed block; ``others`` stand behind the table."""
        ends = self._ends
        width = self._num_key_value_heads * self._head_dim
        table = (self.vocab_size, width)
        specs = [TensorSpec(ends.table, table, "embedding"), *others, *norm_specs(ends.norm, width)]
        if not ends.is_tied:
            specs.append(TensorSpec(ends.head, table, "linear"))
        return specs

    def head_input(self) -> LinearInput:
        """The final norm; a table that is tied is also looked up, and so cannot be scaled."""
        ends = self._ends
        if ends.is_tied:
            return LinearInput((ends.table,))
        return LinearInput((ends.head,), (f"{ends.norm}.weight", f"{ends.norm}.bias"))

    def _look_up(self, fixed: Weights, token_ids: Tensor) -> Tensor:
        """Token embeddings, in the dtype of the final norm's weight.

        Shapes:
            token_ids: (batch, num_tokens)
            return: (batch, num_tokens, hidden_size)
        """
        dtype = vector(fixed, f"{self._ends.norm}.weight").dtype
        return ops.embedding(fixed[self._ends.table], token_ids, dtype)

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """Final norm and logits, float32; the output matrix may have a bias."""
        assert stack == "decoder"
        ends = self._ends
        bias = ends.head.replace(".weight", ".bias")
        return ops.logits(
            hidden,
            fixed[ends.output],
            norm=layer_norm(fixed, ends.norm, ends.eps),
            bias=vector(fixed, bias) if bias in fixed else None,
        )


def require_whole_heads(width_name: str, width: int, heads_name: str, num_heads: int) -> None:
    """Refuse a width that heads cannot share; the names are those in config.json.

    Raises:
        ModelFileError: it does not divide.
    """
    if width % num_heads:
        raise ModelFileError(
            f"config.json has {width_name} = {width}, "
            f"which does not divide by {heads_name} = {num_heads}"
        )
