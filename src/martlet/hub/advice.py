"""What to do about a hub that does not answer as it should, in the reader's language too."""

from __future__ import annotations

import os

__all__ = ["mirror_advice", "token_advice"]

_MIRROR = "https://hf-mirror.com"
_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")


def mirror_advice() -> str:
    """How to use another server where this one cannot be reached."""
    advice = (
        f"check the connection, or use a mirror: HF_ENDPOINT={_MIRROR} martlet ...; "
        "what has arrived is kept, so the same command goes on"
    )
    if _reads_chinese():
        advice += (
            f"（网络不通时可使用镜像：先执行 export HF_ENDPOINT={_MIRROR}，再运行同一条命令；"
            "已下载的部分会保留，自动续传）"
        )
    return advice


def token_advice(endpoint: str, repo: str, *, has_token: bool) -> str:
    """How to get at a repository that is gated or private."""
    if has_token:
        advice = (
            f"the token that was sent does not suffice: accept the conditions at {endpoint}/{repo} "
            "with the account of that token, and give the token the right to read it"
        )
    else:
        advice = (
            f"accept its conditions at {endpoint}/{repo}, make a token at "
            f"{endpoint}/settings/tokens, and set HF_TOKEN or run `hf auth login`"
        )
    if _reads_chinese():
        advice += f"（该模型需要授权：请先在 {endpoint}/{repo} 同意条款，再设置环境变量 HF_TOKEN）"
    return advice


def _reads_chinese() -> bool:
    """Whether the locale is a Chinese one, as programs find it: the first variable that is set."""
    values = (os.environ.get(name) for name in _LOCALE_VARIABLES)
    return next((value for value in values if value), "").lower().startswith("zh")
