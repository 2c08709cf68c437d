"""`python -m vllm.entrypoints.cli.main serve MODEL ...`."""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import torch

from llmctl.wire.infer import ADD, CANCEL, GENERATE, SCORE, Answer, Order, ReplicaSpec, SamplingSpec
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.infer.engine.build import build_rank, limits_of
from llmctl.worker.infer.engine.engine import Engine
from llmctl.worker.infer.engine.pipeline import Alone
from llmctl.worker.infer.engine.place import Place

FLAGS = (
    *("dtype", "max-model-len", "max-num-seqs", "max-logprobs", "tensor-parallel-size"),
    *("pipeline-parallel-size", "generation-config", "kv-cache-memory-bytes", "nnodes", "node-rank"),
    *("master-addr", "master-port", "distributed-executor-backend", "uds"),
)
MEET_S = 120.0


class Computing(threading.Thread):
    """One engine for all requests."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        spec = ReplicaSpec(
            name="fake",
            model=given.model,
            ready_file="",
            dtype={"float32": "fp32", "bfloat16": "bf16"}[given.dtype],
            max_batch=int(given.max_num_seqs),
            max_length=int(given.max_model_len),
            threads=1,
            device="cpu",
        )
        torch.set_num_threads(1)
        with open_weights(spec.model) as weights:
            rank = build_rank(spec, weights, Place(), torch.device("cpu"), None).rank
            self.engine = Engine(Alone(rank), limits_of(spec, weights.config))
        self.orders: queue.SimpleQueue[tuple[queue.SimpleQueue[Answer], Order]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            told = []
            while self.engine.idle or not self.orders.empty():
                asker, order = self.orders.get()
                told += self.engine.obey((asker, order.id), order)
            for key, answer in [*told, *self.engine.turn()]:
                key[0].put(answer)  # type: ignore[index]


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    computing: Computing

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        self._say(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        order = _order(document)
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.computing.orders.put((answers, order))
        if document.get("stream"):
            self._stream(order, answers)
            return
        answer = answers.get()
        while answer.finish is None:
            answer = answers.get()
        if answer.error:
            self._say(400, {"error": {"message": answer.error, "code": 400}})
            return
        scores = [{str(t): {"logprob": s}} for t, s in zip(order.tokens[1:], answer.scores, strict=False)]
        self._say(200, {"choices": [{"text": "", "prompt_logprobs": [None, *scores]}]})

    def _say(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, order: Order, answers: queue.SimpleQueue[Answer]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            finish = None
            while finish is None:
                answer = answers.get()
                finish = answer.finish
                self._event(json.dumps(_chunk(order, answer)))
            self._event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.computing.orders.put((answers, Order(op=CANCEL, id=order.id)))
            self.close_connection = True

    def _event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _order(document: dict[str, Any]) -> Order:
    scores = "prompt_logprobs" in document
    sampling = SamplingSpec(
        max_tokens=document["max_tokens"],
        temperature=document["temperature"],
        top_p=document.get("top_p", 1.0),
        top_k=document.get("top_k", 0),
        seed=document.get("seed"),
        repetition_penalty=document.get("repetition_penalty", 1.0),
        stop_tokens=tuple(document.get("stop_token_ids", ())),
        logprobs=document.get("logprobs"),
    )
    task = SCORE if scores else GENERATE
    return Order(op=ADD, id="x", task=task, tokens=tuple(document["prompt"]), sampling=sampling)


def _chunk(order: Order, answer: Answer) -> dict[str, Any]:
    """As vLLM writes it: the token that ended an answer is among its tokens."""
    if answer.error:
        return {"error": {"message": answer.error, "code": 400}}
    ends = list(order.sampling.stop_tokens[:1]) if answer.finish == "stop" else []
    choice: dict[str, Any] = {
        "text": "",
        "token_ids": [*answer.tokens, *ends],
        "finish_reason": answer.finish,
    }
    if order.sampling.logprobs is not None:
        found = answer.logprobs
        tops = [
            dict(zip((f"token_id:{t}" for t in o.top_tokens), o.top_logprobs, strict=True)) for o in found
        ]
        chosen = [{f"token_id:{one.token}": one.logprob} for one in found]
        choice["logprobs"] = {
            "token_logprobs": [*(one.logprob for one in found), *(-1.0 for _ in ends)],
            "top_logprobs": [*(c | t for c, t in zip(chosen, tops, strict=True)), *({} for _ in ends)],
        }
    return {"choices": [choice]}


def meet(given: argparse.Namespace) -> None:
    """The parts of several hosts know one another; the first one's loss is the others' end, and back."""
    count, place = int(given.nnodes), (given.master_addr, int(given.master_port))
    if given.node_rank == "0":
        with socket.create_server(place) as listener:
            listener.settimeout(MEET_S)
            peers = [listener.accept()[0] for _ in range(count - 1)]
    else:
        peers = [_dial(place)]
    for peer in peers:
        threading.Thread(target=_until_gone, args=(peer,), daemon=True).start()


def _dial(place: tuple[str, int]) -> socket.socket:
    until = time.monotonic() + MEET_S
    while True:
        try:
            peer = socket.create_connection(place, timeout=5)
            peer.settimeout(None)
            return peer
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _until_gone(peer: socket.socket) -> None:
    peer.recv(1)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    for flag in FLAGS:
        parser.add_argument(f"--{flag}", default="1" if flag == "nnodes" else "0")
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    given = parser.parse_args()
    assert Path(given.model, "config.json").is_file()
    if given.nnodes != "1":
        meet(given)
    if given.headless:
        threading.Event().wait()
    computing = Handler.computing = Computing(given)
    computing.start()
    Server(given.uds, Handler).serve_forever()


if __name__ == "__main__":
    sys.exit(main())
