"""Fill the blanks of a text by a running server: how sure it is, and what else would fit.

martlet serve &
python examples/fill_over_http.py [ADDRESS]
"""

import json
import os
import sys
import urllib.request
from typing import Any

TEXT = "次日清晨，__，众人都到堂前__。"


def fill(address: str, text: str) -> dict[str, Any]:
    """What the server says of a text: see docs/server.md for the fields."""
    body = {"model": "cpm2-mini", "text": text, "alternatives": 3, "max_tokens": 40, "seed": 4}
    key = os.environ.get("MARTLET_API_KEY")
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{address}/v1/fill", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main() -> None:
    """Print the filled text and a line for each blank."""
    filled = fill(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", TEXT)
    print(filled["text"])
    for blank in filled["blanks"]:
        others = "、".join(other["text"] for other in blank["alternatives"])
        print(f"  [{blank['index']}] {blank['text']} ({blank['probability']:.1e})  或：{others}")


if __name__ == "__main__":
    main()
