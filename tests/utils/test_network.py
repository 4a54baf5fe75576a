"""The model hub that the user set: a mirror, a proxy, one that hangs, none; all on 127.0.0.1."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from passionsr.utils import network
from passionsr.utils.files import UserError
from passionsr.utils.network import (
    PUBLIC_HUB,
    at_endpoint,
    hub_endpoint,
    hub_problem,
    stay_offline_without_hub,
)

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE")
NOWHERE = "http://127.0.0.1:1"
REFUSED = "does not answer ([Errno 111] Connection refused)"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in (*NAMES, "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(network, "_offline_set_here", False)
    network._probe.cache_clear()
    yield
    network._probe.cache_clear()


@pytest.fixture
def serve():
    """Makes a server that answers every request with a status; its address, its requests."""
    made = []

    def start(status=200):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                asked.append(self.path)
                self.send_response(status)
                self.end_headers()

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        made.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 204, 401, 403, 404, 405, 501])
def test_a_mirror_that_answers_is_used(serve, monkeypatch, status):
    """Whatever it says of its root."""
    address, asked = serve(status)
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert hub_problem() is None
    assert hub_problem() is None
    assert len(asked) == 1  # once per process
    assert at_endpoint(f"{PUBLIC_HUB}/a/b") == f"{address}/a/b"
    assert at_endpoint("https://elsewhere.example/a") == "https://elsewhere.example/a"


@pytest.mark.parametrize(
    ("status", "said"), [(500, "Internal Server Error"), (503, "Service Unavailable")]
)
def test_a_mirror_that_is_down(serve, monkeypatch, status, said):
    address, _ = serve(status)
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert hub_problem() == f"the model hub {address} answers {status} {said}"


def test_one_that_hangs_costs_the_time_out(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(network, "PROBE_SECONDS", 0.3)
        began = time.monotonic()
        assert hub_problem() == f"the model hub {address} does not answer within 0.3 s"
        assert time.monotonic() - began < 2


def test_a_name_that_is_looked_up_for_ever_costs_the_time_out(monkeypatch):
    """No time-out of a socket ends that; on machines without internet it is the usual case."""

    def look_up(*_):
        time.sleep(3)
        raise OSError("name not known")

    monkeypatch.setattr(network, "open_url", look_up)
    monkeypatch.setattr(network, "PROBE_SECONDS", 0.3)
    began = time.monotonic()
    assert hub_problem() == f"the model hub {PUBLIC_HUB} does not answer within 0.3 s"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_the_hub_is_asked_through_the_proxy(serve, monkeypatch, name):
    address, asked = serve()
    monkeypatch.setenv(name, address)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.invalid")
    assert hub_problem() is None
    assert asked == ["http://mirror.invalid"]


def test_no_proxy_is_respected(serve, monkeypatch):
    address, _ = serve()
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("http_proxy", NOWHERE)
    assert hub_problem() == f"the model hub {address} {REFUSED}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    network._probe.cache_clear()
    assert hub_problem() is None


def test_a_proxy_that_is_gone_and_one_that_wants_a_password(serve, monkeypatch):
    monkeypatch.setenv("https_proxy", NOWHERE)
    assert hub_problem() == f"the model hub {PUBLIC_HUB} {REFUSED}"
    address, _ = serve(407)
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.invalid")
    assert "answers 407 Proxy Authentication Required" in hub_problem()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_the_users_offline_mode_is_respected(serve, monkeypatch, name, value):
    address, asked = serve()
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv(name, value)
    assert hub_problem() == f"{name} is set"
    assert asked == []


@pytest.mark.parametrize("given", ["0", "no", ""])
def test_offline_mode_is_not_forced_on_one_who_said_no(monkeypatch, given):
    monkeypatch.setenv("HF_HUB_OFFLINE", given)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    stay_offline_without_hub()
    assert network.os.environ["HF_HUB_OFFLINE"] == given


def test_offline_mode_follows_the_answer(serve, monkeypatch):
    """What this program sets is no wish of the user's, and goes when a hub answers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back afterwards
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    stay_offline_without_hub()
    assert network.os.environ["HF_HUB_OFFLINE"] == "1"
    assert hub_problem() == f"the model hub {NOWHERE} {REFUSED}"
    monkeypatch.setenv("HF_ENDPOINT", serve()[0])
    stay_offline_without_hub()
    assert "HF_HUB_OFFLINE" not in network.os.environ
    assert hub_problem() is None


@pytest.mark.parametrize(
    "given",
    [
        "huggingface.co", "hf-mirror.com/", "htp://x", "ftp://x", "https://", "https:/x", "http//x",
        "http://x:port", "http://x:99999", "http://[::1", "https://a b", "/local/folder",
        "127.0.0.1:8000",
    ],
)  # fmt: skip
def test_what_is_no_address_is_one_line(monkeypatch, given):
    monkeypatch.setenv("HF_ENDPOINT", given)
    for asked in (hub_endpoint, hub_problem, stay_offline_without_hub):
        with pytest.raises(UserError, match=r"HF_ENDPOINT is '.*', expected the address of a"):
            asked()


@pytest.mark.parametrize("given", [None, "", "  "])
def test_none_and_an_empty_one_mean_the_public_hub(monkeypatch, given):
    monkeypatch.setenv("HF_ENDPOINT", given or "")
    if given is None:
        monkeypatch.delenv("HF_ENDPOINT")
    assert hub_endpoint() == PUBLIC_HUB
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stay_offline_without_hub()
    assert "HF_ENDPOINT" not in network.os.environ  # an empty one misleads Hugging Face's libraries


@pytest.mark.parametrize(
    "given", ["https://m.example/hf/", "http://[::1]:8000", "HTTPS://M.example"]
)
def test_addresses(monkeypatch, given):
    monkeypatch.setenv("HF_ENDPOINT", given)
    assert hub_endpoint() == given.rstrip("/")
