"""Fill the blanks of a sentence, three times, and show each blank on its own.

python examples/fill_blank.py [MODEL]
"""

import sys

import martlet

TEXT = "却说宋江见了，心中<blank>，便道：“<blank>？”"


def main() -> None:
    """Print three fills of the same text."""
    model = martlet.load(sys.argv[1] if len(sys.argv) > 1 else "cpm2-mini")
    for seed in (1, 2, 3):
        filled = model.fill(TEXT, seed=seed)
        answers = " | ".join(blank.text for blank in filled.blanks)
        print(f"{filled.text}    [{answers}]")


if __name__ == "__main__":
    main()
