"""Two bundled speakers talk to each other: what one answers is what the other hears.

python examples/dialogue.py [MODEL]
"""

import sys

import martlet


def main() -> None:
    """Print six turns."""
    model = martlet.load(sys.argv[1] if len(sys.argv) > 1 else "eva-mini")
    turns = ["店家，有什么好酒？"]
    for seed in range(5):
        # Whoever speaks next hears the other as "user" and itself as "assistant".
        roles = ("user", "assistant")
        messages = [
            {"role": roles[(len(turns) - 1 - i) % 2], "content": turn}
            for i, turn in enumerate(turns)
        ]
        turns.append(model.chat(messages, seed=seed))
    for i, turn in enumerate(turns):
        print("甲乙"[i % 2] + "：" + turn)


if __name__ == "__main__":
    main()
