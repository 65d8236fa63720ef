#!/usr/bin/env python3
"""Latency and throughput of `regionclip serve` on this machine, at 1, 8 and 32 clients, next to the Python interface.

Then a long run: the memory of the server, and the answers while a worker is killed.

python benchmarks/serve.py [--model emoji] [--workers 1] [--requests 200] [--long 2000] [--json]
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tabulate import tabulate

from regionclip import RegionCLIP
from regionclip.engine.distributed import free_port
from regionclip.files import REPOSITORY

SCENES = sorted((REPOSITORY / "datasets" / "demo_scenes").glob("*.jpg"))
WORDS = "carrot, wood, telescope"
CLIENTS = (1, 8, 32)
BOUNDARY = "bound"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients")
    parser.add_argument("--long", type=int, default=2000, help="requests of the long run; 0 leaves it out")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    plain = plain_rate(args.model, args.requests)
    with Server(args.model, args.workers) as server:
        loads = {count: load(server, count, args.requests) for count in CLIENTS}
        rows = [[count, *(found[key] for key in ("rate", "p50", "p99"))] for count, found in loads.items()]
        print(f"Python interface, one after the other: {plain:.1f} images/s")
        print(tabulate(rows, headers=["clients", "images/s", "p50 ms", "p99 ms"], tablefmt="github", floatfmt=".1f"))
        result: dict[str, Any] = {"plain images/s": plain, "workers": args.workers}
        result["clients"] = {str(count): found for count, found in loads.items()}
        if args.long:
            result["long run"] = found = long_run(server, args.long)
            print(", ".join(f"{name} {value}" for name, value in found.items()))
    if args.json:
        print(json.dumps(result))


def plain_rate(model: str, count: int) -> float:
    """Return images a second of `set_image` and `predict` in this process."""
    detector = RegionCLIP.from_pretrained(model, device="cpu")
    detector.set_vocabulary([word.strip() for word in WORDS.split(",")])
    start = 0.0
    for number in range(-len(SCENES), count):
        if number == 0:
            start = time.perf_counter()
        detector.forget_images()
        detector.set_image(SCENES[number % len(SCENES)])
        detector.predict()
    return count / (time.perf_counter() - start)


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, workers: int) -> None:
        """Start it."""
        self.port = free_port()
        command = ["serve", "--model", model, "--port", self.port, "--workers", workers, "--device", "cpu"]
        command += ["--queue", 100, "--per-client", 100]
        arguments = [sys.executable, "-m", "regionclip", *map(str, command)]
        self.process = subprocess.Popen(arguments, cwd=tempfile.gettempdir(), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and "Serving" in self.process.stdout.readline()
        while self.ask("GET", "/health")[0] != 200:
            time.sleep(0.05)

    def __enter__(self) -> Server:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and body of an answer; status 0 for a connection that failed."""
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = {int(child) for thread in threads for child in (thread / "children").read_text().split()}
        return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def megabytes(self) -> float:
        """Return the memory of the server and its workers."""
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in (self.process.pid, *self.workers())]
        return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE") / 1e6


def body_of(number: int) -> bytes:
    """Return a form with a scene; a pixel differs, so that no encoding is cached."""
    scene = Image.open(SCENES[number % len(SCENES)]).convert("RGB")
    scene.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
    file = io.BytesIO()
    scene.save(file, "JPEG", quality=95, subsampling=0)
    start = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{{}}"{{}}\r\n\r\n'
    words = f"{start.format('words', '')}{WORDS}\r\n".encode()
    image = start.format("image", '; filename="a.jpg"').encode() + file.getvalue()
    return words + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def load(server: Server, clients: int, count: int) -> dict[str, float]:
    """Return throughput and latency of a number of clients that ask without a pause."""
    bodies = [body_of(number) for number in range(count)]

    def timed(number: int) -> float:
        start = time.perf_counter()
        status, content = server.ask("POST", "/detect", bodies[number % count])
        assert status == 200, content
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(timed, range(clients)))
        start = time.perf_counter()
        seconds = sorted(threads.map(timed, range(count)))
        rate = count / (time.perf_counter() - start)
    return {"rate": rate, "p50": 1000 * statistics.median(seconds), "p99": 1000 * seconds[int(0.99 * (count - 1))]}


def long_run(server: Server, count: int) -> dict[str, float]:
    """Return memory at a tenth and at the end of a long run, and its answers; a worker is killed in the middle."""
    memory: list[float] = []
    answers: list[int] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        status, _ = server.ask("POST", "/detect", body_of(number))
        with lock:
            answers.append(status)
            if len(answers) in (count // 10, count // 2 - 1, count):
                memory.append(server.megabytes())
            if len(answers) == count // 2:
                os.kill(server.workers()[0], signal.SIGKILL)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(count)))
    return {
        "requests": count,
        "answered with 200": answers.count(200),
        "MB after a tenth": round(memory[0]),
        "MB before the kill": round(memory[1]),
        "MB at the end": round(memory[2]),
    }


if __name__ == "__main__":
    main()
