"""Google's addresses on loopback: a CONNECT proxy that ends TLS with a test authority, and a token for whoever asks.

Whatever host a client means, its requests reach the platform of this machine. The client is not changed: it is told of
the proxy, the authority and the service account by the environment, as any client in a company's network is.
"""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from select import select

import trustme


@contextmanager
def google(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Stand in for Google before the program at `port`; the environment that a client needs for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    hosts: set[str] = set()

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            host = self.path.rpartition(":")[0]
            hosts.add(host)
            self.send_response(200)
            self.end_headers()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(host).configure_cert(context)
            context.set_alpn_protocols(["h2", "http/1.1"])  # what gRPC and REST ask for
            with (
                context.wrap_socket(self.connection, server_side=True) as client,
                socket.create_connection(("127.0.0.1", port)) as server,
            ):
                _pump(client, server)
            self.close_connection = True

        def do_POST(self) -> None:  # the token_uri of the service account
            body = json.dumps({"access_token": "loopback", "expires_in": 3600, "token_type": "Bearer"}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    (folder / "account.json").write_text(json.dumps(_account(f"{here}/token")))
    try:
        yield {
            "HTTPS_PROXY": here,
            "https_proxy": here,
            "NO_PROXY": "127.0.0.1",
            "REQUESTS_CA_BUNDLE": str(folder / "ca.pem"),
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(folder / "ca.pem"),
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "account.json"),
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    (folder / "hosts").write_text("\n".join(sorted(hosts)))


def _pump(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Carry bytes both ways until either side ends."""
    while True:
        ready = [client] if client.pending() else select([client, server], [], [], 30)[0]
        if not ready:
            return
        for side in ready:
            data = side.recv(65536)
            if not data:
                return
            (server if side is client else client).sendall(data)


def _account(token_uri: str) -> dict[str, str]:
    """A service account file with a key of its own."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "k",
        "private_key": pem.decode(),
        "client_email": "runner@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
