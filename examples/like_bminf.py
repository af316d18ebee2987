"""The calls of BMInf 1.x, with its names and arguments.

python examples/like_bminf.py
"""

from martlet.bminf import CPM1, CPM2, EVA


def main() -> None:
    """One call of each model."""
    fills = CPM2(version="cpm2-mini").fill_blank(
        "次日清晨，<span>，众人都到堂前<span>。", top_p=0.9
    )
    print([fill["text"] for fill in fills])
    text, stopped = CPM1(version="cpm1-mini").generate("却说那老汉推开门，只见", max_tokens=40)
    print(text, stopped)
    reply, _ = EVA(version="eva-mini").dialogue(["你这汉子是谁？"])
    print(reply)


if __name__ == "__main__":
    main()
