"""Whether the server in this container answers, and its worker can work: exit code 0 or 1.

usage: python3 healthcheck.py [URL]     (the token is read from LORALOOM_TOKEN)
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request


def fault(url: str, token: str) -> str | None:
    """What is wrong with the server at `url`, or None."""
    request = urllib.request.Request(f"{url}/v1/queue")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=8) as answer:
            queue = json.load(answer)
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {error}"
    return queue["worker"].get("error")


if __name__ == "__main__":
    said = fault((sys.argv[1:] or ["http://127.0.0.1:8188"])[0], os.environ.get("LORALOOM_TOKEN", ""))
    sys.stdout.write(f"{said or 'healthy'}\n")
    sys.exit(said is not None)
