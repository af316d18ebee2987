"""The text that a compression is calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet.compression.walk import Sample
from martlet.engine.loading import OpenedModel
from martlet.engine.sample_texts import SampleForm, sample_text
from martlet.engine.text_file import TextFile, read_text_file
from martlet.errors import UsageError, VocabularyError

__all__ = ["Calibration", "form_of", "read_calibration"]


@dataclass(frozen=True)
class Calibration:
    """The text, and what is taken of it."""

    file: TextFile | None
    samples: tuple[Sample, ...]
    num_samples: int
    sample_tokens: int
    seed: int

    def facts(self) -> dict[str, Any]:
        """What tells one calibration from another."""
        if self.file is None:
            return {}
        return {
            "file": self.file.path.name,
            "sha256": self.file.sha256,
            "samples": self.num_samples,
            "sample_tokens": self.sample_tokens,
            "seed": self.seed,
        }

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples, on both sides of a model that has two."""
        return sum(len(s.decoder_ids) + len(s.encoder_ids) for s in self.samples)


def form_of(folder: OpenedModel) -> SampleForm:
    """The form in which a model reads samples of a text.

    Raises:
        VocabularyError: the folder has no tokenizer, or one of another model.
    """
    return SampleForm(
        folder.files.family,
        folder.tokenizer(),
        folder.architecture.max_positions,
        folder.max_input_tokens,
    )


def read_calibration(
    folder: OpenedModel,
    file: str | Path | None,
    num_samples: int,
    sample_tokens: int,
    seed: int,
) -> Calibration:
    """Samples of a text in the form of the model's family; none without a file.

    Raises:
        UsageError: a number or the file is not valid.
        VocabularyError: the folder has no tokenizer, or one of another model.
    """
    for name, value, least, most in (
        ("samples", num_samples, 1, 1 << 16),
        ("sample_tokens", sample_tokens, 16, 1 << 16),
    ):
        if type(value) is not int or not least <= value <= most:
            raise UsageError(f"{name} is {value!r:.40}; it must be from {least} to {most:,}")
    if folder.files.tokenizer_files is None:  # the new folder has to have one too
        raise VocabularyError(
            f"{folder.files.location} has no tokenizer; put its files there, or convert the model "
            "again with --tokenizer"
        )
    if file is None:
        return Calibration(None, (), num_samples, sample_tokens, seed)
    form = form_of(folder)
    text = read_text_file(Path(file), "the calibration text")
    pieces = sample_text(
        form, text.text, num_samples=num_samples, sample_tokens=sample_tokens, seed=seed
    )
    return Calibration(text, pieces, num_samples, sample_tokens, seed)
