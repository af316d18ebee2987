"""What the choice of the next token means, in plain torch: as ``reference``, to be read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from martlet.kernels.sample_state import SampleState
from martlet.kernels.step_state import StepState

__all__ = ["finish_step", "most_probable", "sample"]


def most_probable(logits: Tensor, suppressed: Tensor | None, state: StepState) -> None:
    """The most probable token of each slot; see ``ops.most_probable``."""
    scores = logits if suppressed is None else logits.masked_fill(suppressed, -math.inf)
    best, token_ids = scores.max(dim=-1)
    state.token_ids.copy_(token_ids)
    _note_choice(logits, best, state)


def _note_choice(logits: Tensor, best: Tensor, state: StepState) -> None:
    """The log-probabilities of the chosen tokens; best (num_slots,) is -inf where none may be."""
    chosen = logits.gather(1, state.token_ids[:, None])[:, 0]
    logprobs = chosen - logits.logsumexp(dim=-1)
    logprobs.masked_fill_(best == -math.inf, -math.inf)
    logprobs.masked_fill_(~logits.isfinite().all(dim=-1), math.nan)
    state.logprobs.copy_(logprobs)
    state.status.bitwise_or_((~logprobs.isfinite()).any().to(torch.int32))


def sample(
    logits: Tensor, suppressed: Tensor | None, chances: SampleState, state: StepState
) -> None:
    """The next token of each slot by its own settings; see ``ops.sample``."""
    for slot, (temperature, *cuts) in enumerate(chances.settings[:, :4].tolist()):
        scores = _penalised(logits[slot], slot, chances)
        if suppressed is not None:
            mask = suppressed if suppressed.ndim == 1 else suppressed[slot]
            scores = scores.masked_fill(mask, -math.inf)
        chances.scores[slot] = scores
        usable = logits[slot].isfinite().all() and scores.max() > -math.inf
        token_id = int(scores.argmax())
        if usable and temperature > 0:
            place = min(int(chances.num_drawn[slot]), chances.uniforms.shape[1] - 1)
            token_id = _draw(scores, temperature, cuts, float(chances.uniforms[slot, place]))
        state.token_ids[slot] = token_id
        if not state.is_done[slot]:
            chances.output_counts[slot, token_id] += 1
            chances.seen[slot, token_id] = True
            chances.num_drawn[slot] += int(temperature > 0)
    _note_choice(logits, chances.scores.max(dim=-1).values, state)


def _penalised(logits: Tensor, slot: int, chances: SampleState) -> Tensor:
    repetition, presence, frequency = chances.settings[slot, 4:].tolist()
    counts = chances.output_counts[slot]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    scores = torch.where(chances.seen[slot], repeated, logits)
    return scores.sub(presence * (counts > 0).float()).sub(frequency * counts.float())


def _draw(scores: Tensor, temperature: float, cuts: Sequence[float], uniform: float) -> int:
    """One token of a row of scores; ``cuts`` are top_k, top_p and min_p."""
    top_k, top_p, min_p = cuts
    weights = ((scores.double() - scores.max().double()) / temperature).exp()
    is_ranked = 0 < top_k < len(scores) or top_p < 1
    if is_ranked:
        # Stable, so that equal scores stand in the order of their ids.
        token_ids = scores.sort(descending=True, stable=True).indices
    else:
        token_ids = torch.arange(len(scores), device=scores.device)
    if 0 < top_k < len(scores):
        token_ids = token_ids[: int(top_k)]
    if top_p < 1:
        running = weights[token_ids].cumsum(0)
        before = running - weights[token_ids]
        token_ids = token_ids[: max(1, int((before < top_p * running[-1]).sum()))]
    token_ids = token_ids[weights[token_ids] >= min_p]
    running = weights[token_ids].cumsum(0)
    place = int(torch.searchsorted(running, uniform * running[-1], right=True))
    if place == len(running):  # the product was rounded up to the sum
        return int(scores.argmax())
    return int(token_ids[place])


def finish_step(state: StepState, ending_ids: Tensor) -> None:
    """The end of a step; see ``ops.finish_step``."""
    for slot in range(len(state.token_ids)):
        place = int(state.num_output[slot])
        if state.is_done[slot] or place >= state.output_ids.shape[1]:
            continue
        state.output_ids[slot, place] = state.token_ids[slot]
        state.output_logprobs[slot, place] = state.logprobs[slot]
        state.num_output[slot] += 1
        state.lengths[slot] += 1
        state.is_done[slot] = bool((ending_ids == state.token_ids[slot]).any())
