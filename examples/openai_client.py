"""Talk to a running server with OpenAI's client, or without it where it is not installed.

martlet serve &
python examples/openai_client.py [ADDRESS]
"""

import importlib.util
import json
import os
import sys
import urllib.request
from collections.abc import Iterator

KEY = os.environ.get("MARTLET_API_KEY", "not needed")
QUESTION = {
    "model": "eva-mini",
    "messages": [{"role": "user", "content": "你这汉子是谁？"}],
    "max_tokens": 40,
    "seed": 4,
}


def ask_with_openai(address: str) -> Iterator[str]:
    """The pieces of an answer, by the package openai."""
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        for chunk in client.chat.completions.create(**QUESTION, stream=True):
            yield chunk.choices[0].delta.content or ""


def ask_with_urllib(address: str) -> Iterator[str]:
    """The same with nothing but Python: lines that begin with "data:", the last is [DONE]."""
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps({**QUESTION, "stream": True}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            data = line.decode().removeprefix("data: ").strip()
            # Empty lines end events, those with a colon in front only say that the server lives.
            if data and not data.startswith(":") and data != "[DONE]":
                yield json.loads(data)["choices"][0]["delta"].get("content") or ""


def main() -> None:
    """Print an answer as it comes."""
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    has_openai = importlib.util.find_spec("openai") is not None
    ask = ask_with_openai if has_openai else ask_with_urllib
    print(f"{QUESTION['messages'][0]['content']}\n—— ", end="")
    for piece in ask(address):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
