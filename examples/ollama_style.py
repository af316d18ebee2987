"""Do as Ollama's clients do: list the models, then read a text line by line, each line JSON.

martlet serve &
python examples/ollama_style.py [ADDRESS]
"""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of an answer, as they come."""
    headers = {"content-type": "application/json"}
    key = os.environ.get("MARTLET_API_KEY")
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address + path, data, headers)) as answer:
        for line in answer:
            yield json.loads(line)


def main() -> None:
    """Print the models and a story."""
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    (found,) = ask(address, "/api/tags")
    print("models:", ", ".join(model["name"] for model in found["models"]))
    opening = "却说那老汉推开门，只见"
    print(opening, end="")
    options = {"num_predict": 60, "seed": 3}
    body = {"model": "cpm1-mini", "prompt": opening, "options": options}
    for part in ask(address, "/api/generate", body):
        print(part["response"], end="", flush=True)
        if part["done"]:
            rate = part["eval_count"] / (part["eval_duration"] / 1e9)
            print(f"\n({part['eval_count']} tokens, {rate:.0f} a second)")


if __name__ == "__main__":
    main()
