"""The model hub: an endpoint that is none, one that does not answer, offline mode, proxies."""

import os
import sys
from unittest import mock

from bad_inputs.cases_downloads import OR_LOCAL, REGISTRY
from bad_inputs.table import BadInput

HUB_URL = "https://huggingface.co/datasets/o/n/resolve/main/a.zip"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE")
BARE = [*VARIABLES, *map(str.lower, VARIABLES), "TRANSFORMERS_OFFLINE"]
REFUSED = "does not answer ([Errno 111] Connection refused)"
EXPECTED = (
    "expected the address of a model hub with http:// or https://, such as "
    "https://huggingface.co: correct it, or unset it"
)


def fetch(**environment):
    """`passionsr fetch S`, whose archive is on the hub, in an environment."""

    def prepare(folder):
        (folder / "config").mkdir()
        text = REGISTRY.format(folder="", file="a.zip").replace("file:///served", HUB_URL)
        (folder / "config" / "datasets.yaml").write_text(text)
        unset = [word for name in BARE for word in ("-u", name)]
        given = [f"{name}={value}" for name, value in environment.items()]
        command = [sys.executable, "-m", "passionsr.cli", "fetch", "S"]
        return ["$", "env", *unset, *given, *command]

    return prepare


def call(action, **environment):
    """A function in an environment."""

    def prepare(folder):
        def run():
            clean = {name: value for name, value in os.environ.items() if name not in BARE}
            given = {**clean, "HF_HOME": str(folder / "hf"), **environment}
            with mock.patch.dict(os.environ, given, clear=True):
                return action(folder)

        return run

    return prepare


def find_base(folder):
    from passionsr.models.osediff.sd21 import find_base

    find_base("owner/name", "0" * 40)


def musiq(folder):
    from passionsr.metrics.weights import unavailable_reason

    print(unavailable_reason("musiq", folder))


def not_fetched(reason):
    return (
        f"a.zip could not be downloaded ({HUB_URL}: {reason}). Fetch it by other means and put it "
        f"at data/.archives/a.zip, or {OR_LOCAL}"
    )


ROWS = [
    BadInput(
        kind=13,
        given="HF_ENDPOINT without http",
        prepare=fetch(HF_ENDPOINT="hf-mirror.com"),
        answer=f"HF_ENDPOINT is 'hf-mirror.com', {EXPECTED}",
    ),
    BadInput(
        kind=13,
        given="HF_ENDPOINT with a bad port",
        prepare=call(find_base, HF_ENDPOINT="http://mirror:port"),
        answer=f"HF_ENDPOINT is 'http://mirror:port', {EXPECTED}",
    ),
    BadInput(
        kind=13,
        given="HF_ENDPOINT that nobody listens at",
        prepare=fetch(HF_ENDPOINT="http://127.0.0.1:1"),
        answer=not_fetched(f"the model hub http://127.0.0.1:1 {REFUSED}"),
    ),
    BadInput(
        kind=13,
        given="proxy that nobody listens at",
        prepare=fetch(HTTPS_PROXY="http://127.0.0.1:1"),
        answer=not_fetched(f"the model hub https://huggingface.co {REFUSED}"),
    ),
    BadInput(
        kind=13,
        given="HF_HUB_OFFLINE=1",
        prepare=fetch(HF_HUB_OFFLINE="1"),
        answer=not_fetched("HF_HUB_OFFLINE is set"),
    ),
    BadInput(
        kind=13,
        given="HF_HUB_OFFLINE=1 for the base model",
        prepare=call(find_base, HF_HUB_OFFLINE="1"),
        answer="Stable Diffusion 2.1-base cannot be fetched (HF_HUB_OFFLINE is set, and the cache "
        "has none of owner/name); give --base a local folder with unet/, vae/ and scheduler/ of "
        "Stable Diffusion 2.1-base in diffusers format (safetensors)",
    ),
    BadInput(
        kind=13,
        given="mirror without MUSIQ's weights out of reach",
        prepare=call(musiq, HF_ENDPOINT="http://127.0.0.1:1"),
        answer="{folder}/hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth is missing and the model hub "
        f"http://127.0.0.1:1 {REFUSED}; put the file there",
        status=0,
    ),
]
