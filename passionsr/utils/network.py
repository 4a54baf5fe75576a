"""How this program reaches the network: through the user's proxies, to the hub that the user set.

The environment is read at every call: http_proxy, https_proxy, all_proxy and no_proxy in either
case, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import functools
import http.client
import os
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from passionsr.utils.files import UserError

PUBLIC_HUB = "https://huggingface.co"
PROBE_SECONDS = 5.0
AGENT = {"User-Agent": "passionsr-bench"}
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables
_OFFLINE = "HF_HUB_OFFLINE"
_offline_set_here = False  # by stay_offline_without_hub, not by the user


# -- addresses ----------------------------------------------------------------------------------


def proxies() -> dict[str, str]:
    """Scheme -> proxy, as the environment says; all_proxy where a scheme has none of its own."""
    found = urllib.request.getproxies()
    if "all" in found:
        found = {"http": found["all"], "https": found["all"], **found}
    return found


def open_url(request: str | urllib.request.Request, timeout: float) -> Any:
    """`urllib.request.urlopen` through `proxies`; it raises what that raises."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies()))
    return opener.open(request, timeout=timeout)


# -- the model hub ------------------------------------------------------------------------------


def hub_endpoint() -> str:
    """HF_ENDPOINT without a slash at its end, or the public hub; UserError if it is no address."""
    given = os.environ.get("HF_ENDPOINT", "").strip()
    if not given:
        return PUBLIC_HUB
    try:
        parts = urllib.parse.urlsplit(given)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of brackets, or of the port
        good = False
    if not good or len(given.split()) > 1:
        raise UserError(
            f"HF_ENDPOINT is {given!r}, expected the address of a model hub with http:// or "
            f"https://, such as {PUBLIC_HUB}: correct it, or unset it"
        )
    return given.rstrip("/")


def is_on_hub(url: str) -> bool:
    """Whether an address is one of the public hub."""
    return url.startswith(f"{PUBLIC_HUB}/")


def at_endpoint(url: str) -> str:
    """An address of the public hub as one of `hub_endpoint`; any other as it is."""
    return hub_endpoint() + url.removeprefix(PUBLIC_HUB) if is_on_hub(url) else url


def hub_problem() -> str | None:
    """Why the hub cannot be asked for files, in one clause; None if it answers.

    It is asked once per process, address and proxies, and for PROBE_SECONDS at most, so that
    nobody waits through the retries of the libraries. Raises UserError as `hub_endpoint` does.
    """
    offline = _switched_off()
    if offline:
        return f"{offline} is set"
    endpoint = hub_endpoint()
    problem = _probe(endpoint, tuple(sorted(proxies().items())))
    return problem and f"the model hub {endpoint} {problem}"


def stay_offline_without_hub() -> None:
    """Set HF_HUB_OFFLINE if the hub does not answer; what the user has set stays as it is.

    Call it before Hugging Face's libraries are imported, which read their variables then.
    """
    global _offline_set_here
    if not os.environ.get("HF_ENDPOINT", "unset").strip():
        del os.environ["HF_ENDPOINT"]  # they take an empty one for an address
    if _offline_set_here:
        os.environ.pop(_OFFLINE, None)
        _offline_set_here = False
    if _OFFLINE not in os.environ and hub_problem() is not None:
        os.environ[_OFFLINE] = "1"
        _offline_set_here = True


def _switched_off() -> str | None:
    """The variable by which the user has switched the hub off, if any."""
    own = _OFFLINE in os.environ and not _offline_set_here
    name = _OFFLINE if own and os.environ[_OFFLINE] else "TRANSFORMERS_OFFLINE"
    return name if os.environ.get(name, "").upper() in _TRUE else None


@functools.cache
def _probe(endpoint: str, through: tuple[tuple[str, str], ...]) -> str | None:
    """What is wrong with the answer, in words; `through` (the proxies) is a key of the cache.

    In a thread, because no time-out ends the look-up of a name.
    """
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    ask = functools.partial(_ask, endpoint, answers)
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"does not answer within {PROBE_SECONDS:g} s"


def _ask(endpoint: str, answers: queue.SimpleQueue[str | None]) -> None:
    request = urllib.request.Request(endpoint, headers=AGENT, method="HEAD")
    problem: str | None = None
    try:
        open_url(request, 2 * PROBE_SECONDS).close()
    except urllib.error.HTTPError as err:  # a hub may have no page at its root, or know no HEAD
        if err.code == 407 or (err.code >= 500 and err.code != 501):
            problem = f"answers {err.code} {err.reason}"
    except (OSError, http.client.HTTPException, ValueError) as err:
        problem = f"does not answer ({getattr(err, 'reason', err)})"
    answers.put(problem)
