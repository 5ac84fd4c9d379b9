"""Online or offline: what the key, the server and the proxy say, in bounded time."""

import socket
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress

import pytest
import wandb
from wandb_file import KEY, forget

from vision_tutorial.runs import wandb_logger


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    forget(monkeypatch, tmp_path)
    yield
    wandb.teardown()


@pytest.fixture
def hosts():
    """Addresses on this machine, by what who asks there gets."""
    with ExitStack() as opened:
        found = {}
        for name, reply in REPLIES.items():
            server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=serve, args=(server, reply), daemon=True).start()
            found[name] = f"http://127.0.0.1:{server.getsockname()[1]}"
        refusing = opened.enter_context(socket.socket())
        refusing.bind(("127.0.0.1", 0))
        yield found | {"refuses": f"http://127.0.0.1:{refusing.getsockname()[1]}"}


REPLIES = {
    "answers": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "500": b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "401": b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "garbage": b"SSH-2.0-OpenSSH_9\r\n",
    "hangs": b"",
    "drips": b"H T T P",
}


def serve(server, reply):
    """Reply to all who come, until the server is closed; to hang, and to drip, as named."""
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with suppress(OSError):
            client.recv(65536)
            if not reply:
                time.sleep(5)
            for byte in reply if reply == REPLIES["drips"] else [reply]:
                client.sendall(bytes([byte]) if isinstance(byte, int) else byte)
                time.sleep(0.7 if isinstance(byte, int) else 0)
            client.close()


@pytest.mark.parametrize(
    "mode, key, host, settled",
    [
        ("auto", True, "answers", "online"),
        *(("auto", True, host, "offline") for host in (*list(REPLIES)[1:], "refuses")),
        ("online", True, "answers", "online"),
        ("online", True, "refuses", "offline"),
        ("online", False, "answers", "offline"),
        ("offline", True, "answers", "offline"),
    ],
)
def test_the_mode_that_is_settled_on(monkeypatch, hosts, mode, key, host, settled):
    monkeypatch.setenv("WANDB_BASE_URL", hosts[host])
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    began = time.monotonic()
    found, why = wandb_logger.decide_mode(mode, wandb)
    assert time.monotonic() - began < 4
    assert found == settled and bool(why) == (settled == "offline")


def test_behind_a_proxy_the_proxy_must_answer(monkeypatch, hosts):
    for proxy in (hosts["answers"], hosts["answers"].removeprefix("http://"), hosts["refuses"]):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setattr(urllib.request, "_opener", None)  # it reads the proxies once
        found = wandb_logger.serves("http://no-such-host.invalid")
        assert found == (proxy != hosts["refuses"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert wandb_logger.serves(hosts["answers"])


def test_the_key_is_looked_for_under_the_server_that_wandb_would_take(monkeypatch, tmp_path):
    monkeypatch.setattr(wandb_logger, "serves", lambda url: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))

    def settled(machine, file="netrc"):
        wandb.teardown()  # it reads its settings once
        (tmp_path / file).write_text(f"machine {machine} login user password {KEY}")
        (tmp_path / file).chmod(0o600)
        return wandb_logger.decide_mode("auto", wandb)[0]

    assert settled("api.wandb.ai", "_netrc") == "online"
    assert settled("other.host", ".netrc") == "offline", "the first file counts"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert settled("api.wandb.ai") == "online"
    assert settled("machine machine") == "offline", "a damaged file"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.school.kr\n")
    assert settled("api.wandb.ai") == "offline" and settled("wandb.school.kr") == "online"
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "/a/file")
    assert settled("other.host") == "online"
