"""wandb without what it finds on the machine; and what it wrote, read back: it ships no reader."""

import json
import os
import struct
import zlib

KEY = "fakekey0" * 5


def forget(monkeypatch, home):
    """No key, no settings, no proxy and no home of the machine's."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def records(path):
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        check, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + length]
        assert check == zlib.crc32(bytes([kind]) + part)
        at += 7 + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)


def read(folder):
    """Every record under a run folder, in the order of its sessions."""
    files = sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda path: path.parent.name)
    return [record for path in files for record in records(path)]


def items(entries):
    """wandb's key-value entries, without its own (which begin with _)."""
    pairs = ((entry.key or "/".join(entry.nested_key), entry.value_json) for entry in entries)
    return {key: json.loads(value) for key, value in pairs if not key.startswith("_")}


def history(folder):
    """The rows that wandb would upload."""
    return [items(r.history.item) for r in read(folder) if r.HasField("history")]
