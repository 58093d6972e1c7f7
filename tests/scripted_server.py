"""A server that does to a client what a test tells it to: frames, raw bytes, silence, over a real socket."""

import base64
import contextlib
import json
import socket
import struct
import threading

from websockets.exceptions import WebSocketException
from websockets.frames import Close, Frame, Opcode
from websockets.server import ServerProtocol


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock):
        self.sock = sock
        self.protocol = ServerProtocol(max_size=None)

    def receive(self):
        """Return the next events: a handshake's request, or frames. Raise ConnectionError at the end."""
        while True:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the client has closed the connection")
            self.protocol.receive_data(data)
            events = self.protocol.events_received()
            if events:
                return events

    def accept(self):
        self.protocol.send_response(self.protocol.accept(self.request))
        self.send(*self.protocol.data_to_send())
        self.messages = []

    def hear(self):
        """Accept the handshake and return the payload that the client sends."""
        self.accept()
        self.payload = json.loads(self.next_frame(Opcode.TEXT).data)
        return self.payload

    def next_frame(self, opcode):
        while True:
            while self.messages:
                frame = self.messages.pop(0)
                if frame.opcode == opcode:
                    return frame
            self.messages = [event for event in self.receive() if isinstance(event, Frame)]

    def send(self, *data):
        self.sock.sendall(b"".join(data))

    def frame(self, opcode, data, **options):
        self.send(Frame(opcode, data, **options).serialize(mask=False))

    def json(self, message):
        self.frame(Opcode.TEXT, json.dumps(message).encode())

    def chunk(self, pcm, **fields):
        audio = base64.b64encode(pcm).decode()
        self.json({"request_id": "r-1", "status": "chunk", "data": {"audio": audio}, **fields})

    def complete(self, **fields):
        self.json({"request_id": "r-1", "status": "complete", **fields})

    def close(self, code, reason=""):
        self.frame(Opcode.CLOSE, Close(code, reason).serialize())

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait(self):
        """Do nothing until the client has gone."""
        with contextlib.suppress(OSError):
            while self.sock.recv(65536):
                pass


PCM = bytes(range(256)) * 200  # 1.07 s at 24 kHz


def say(*chunks, then=lambda peer: peer.complete()):
    """Return a play that hears the payload, sends these chunks, and then does something."""

    def play(peer):
        peer.hear()
        for chunk in chunks:
            peer.chunk(chunk)
        then(peer)

    return play


def refusal(status, *headers, body=b""):
    """Return a play that answers a handshake, or a CONNECT, with an HTTP status."""
    lines = [f"HTTP/1.1 {status} Refused", *headers, f"Content-Length: {len(body)}", "", ""]
    return lambda peer: peer.send("\r\n".join(lines).encode() + body)


class ScriptedServer:
    """Listens on a free port of 127.0.0.1 and lets `play(peer)` answer each connection.

    A play starts when the request of the handshake is there; with `raw` as soon as somebody connects.
    """

    def __init__(self, play, tls=None, raw=False):
        self.play, self.tls, self.raw = play, tls, raw
        self.peers, self.requests, self.connections = [], [], 0

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/"
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.listener.close()
        for peer in self.peers:
            peer.sock.close()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what a play sends leaves at once
                self.connections += 1
                threading.Thread(target=self.answer, args=(sock,), daemon=True).start()

    def answer(self, sock):
        with contextlib.suppress(OSError, WebSocketException):
            peer = Peer(self.tls.wrap_socket(sock, server_side=True) if self.tls else sock)
            self.peers.append(peer)
            if not self.raw:
                peer.request = peer.receive()[0]
                self.requests.append(peer.request)
            self.play(peer)
            peer.wait()
