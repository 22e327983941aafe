"""The summary as a web page."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer

ADDRESS = ("127.0.0.1", 8080)


def serve(text: str) -> None:
    """Answer every GET with a text, until interrupted; says so on standard output once it listens."""
    body = text.encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(ADDRESS, Page) as server:
        print(f"listening on http://{ADDRESS[0]}:{ADDRESS[1]}/", flush=True)
        server.serve_forever()
