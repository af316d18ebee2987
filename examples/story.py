"""Write a story that goes on past the model's context, printed as it comes.

python examples/story.py [MODEL] [MAX_TOKENS]
"""

import sys

import martlet


def main() -> None:
    """Stream one story."""
    name, max_tokens = [*sys.argv[1:], *("cpm1-mini", "300")[len(sys.argv) - 1 :]]
    model = martlet.load(name)
    opening = "话说那日天降大雪，"
    print(opening, end="")
    with model.write(opening, max_tokens=int(max_tokens), seed=3, stream=True) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
