"""A stand-in of the Hugging Face hub: what its client asks for to make a repository, commit, and
download, on a port of this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: dict | bytes, code: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        hub, path, body = self.server.hub, self.path.partition("?")[0], self.body()
        hub.asked.append(path)
        if self.headers.get("Authorization") != "Bearer hf_student":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            given = json.loads(body)
            hub.name = f"{given['organization']}/{given['name']}"
            return self.answer({"url": f"{hub.address}/{hub.name}"})
        if path.endswith("/preupload/main"):
            kinds = {True: "lfs", False: "regular"}
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "shouldIgnore": False} for name in names]
            for file in files:
                file["uploadMode"] = kinds[file["path"].endswith((".safetensors", ".onnx"))]
            return self.answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            url = f"{hub.address}/{hub.name}/commit/{COMMIT}"
            return self.answer({"success": True, "commitUrl": url, "commitOid": COMMIT})
        return self.answer({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == name
        self.server.hub.large[name] = content
        self.answer({})

    def do_GET(self) -> None:
        hub, name = self.server.hub, self.path.rpartition("/")[2]
        if self.path == "/" or name in hub.files:
            content = hub.files.get(name, b"")
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(content, X_Repo_Commit=COMMIT, ETag=etag)
        return self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


class Hub:
    """files: what was committed, by path. asked: the paths of all POST requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.name = ""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
