"""Three gigabytes through a real gateway over lines that are cut: the same bytes come out, and the
gateway holds little of them."""

from __future__ import annotations

import hashlib
import signal
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from cutting_proxy import CuttingProxy
from stored_checkpoint import stored_folder, write_checkpoint
from tests.conftest import GatewayProcess

from tinkergate_client import DownloadProgress, connect

GIB = 1 << 30
MIB = 1 << 20
SIZE = 3 * GIB
ALLOWED = 200 * MIB
WEIGHTS = "adapter_model.safetensors"


def memory(gateway: GatewayProcess, line: str) -> int:
    """What /proc says of a gateway's memory, in bytes: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    (found,) = [text.split()[1] for text in status.splitlines() if text.startswith(f"{line}:")]
    return int(found) * 1024


class House:
    """A gateway with a large checkpoint, and a line to each of its doors."""

    def __init__(self, gateway: GatewayProcess, path: str) -> None:
        self.gateway = gateway
        self.path = path
        self.weights = stored_folder(gateway.data_dir, path) / WEIGHTS


@pytest.fixture(scope="module")
def house(micro_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("large")
    path = write_checkpoint(root / "data", "large", {WEIGHTS: SIZE})
    flags = ["--model", str(micro_model_dir), "--http", "127.0.0.1:0"]
    gateway = GatewayProcess(root, flags, {})
    try:
        gateway.wait_until_listening()
        yield House(gateway, path)
    finally:
        gateway.stop()


def sum_of_the_rest(url: str, offset: int, etag: str, digest: Any) -> tuple[int, str]:
    """Read what a link leads to from `offset` on, as far as the line lasts. Answers how far that
    was, and the etag."""
    headers = {"Range": f"bytes={offset}-", "If-Range": etag} if etag else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: HTTPResponse
    with opener.open(urllib.request.Request(url, headers=headers)) as answer:
        assert answer.status == (206 if etag else 200)
        if etag:
            assert answer.headers["Content-Range"].startswith(f"bytes {offset}-")
        try:
            while piece := answer.read(MIB):
                digest.update(piece)
                offset += len(piece)
        except (HTTPException, OSError):
            pass  # the line was cut
        return offset, answer.headers["ETag"]


@pytest.mark.slow
def test_three_gigabytes_come_through_cuts_and_little_is_held(house: House, tmp_path: Path) -> None:
    """As one archive over gRPC by the client, then the same over HTTP by its link."""
    before = memory(house.gateway, "VmRSS")
    file = tmp_path / "large.tar.gz"
    with CuttingProxy(house.gateway.address) as line:
        line.cut_after = [SIZE // 3]
        with connect(line.address, patience=60) as client:
            got = client.checkpoints.download_archive(house.path, file)
            link = client.checkpoints.archive_url(house.path)
        assert len(line.received) == 2
        assert sum(line.received) < SIZE * 1.1  # headers of frames, and what was lost on its way
    assert got.verified
    assert got.size_bytes == link.size_bytes == file.stat().st_size > SIZE
    with tarfile.open(file, "r:gz") as tar:
        first = tar.next()
        assert first is not None
        assert first.name == "adapter_config.json"
    file.unlink()

    digest = hashlib.sha256()
    with CuttingProxy(house.gateway.http_address) as line:
        line.cut_after = [SIZE // 2]
        url = link.url.replace(house.gateway.http_address, line.address)
        reached, etag = sum_of_the_rest(url, 0, "", digest)
        assert reached <= SIZE // 2
        assert etag == f'"{link.etag}"'
        whole, _ = sum_of_the_rest(url, reached, etag, digest)
        assert whole == link.size_bytes
        assert line.received[1] < SIZE * 0.6
    assert digest.hexdigest() == got.sha256
    grown = memory(house.gateway, "VmHWM") - before
    print(f"\nmemory grew by {grown / MIB:.0f} MiB")
    assert grown < ALLOWED


def test_a_gateway_that_is_killed_meanwhile_goes_on_when_it_is_back(
    micro_model_dir: Path, tmp_path: Path
) -> None:
    root = tmp_path / "gateway"
    root.mkdir()
    path = write_checkpoint(root / "data", "some", {WEIGHTS: 60 * MIB})
    flags = ["--model", str(micro_model_dir)]
    gateways = [GatewayProcess(root, flags, {})]
    gateways[0].wait_until_listening()
    told: list[DownloadProgress] = []
    try:
        with CuttingProxy(gateways[0].address) as line:

            def kill() -> None:
                gateways[0].signal(signal.SIGKILL)
                gateways[0].wait()
                threading.Thread(target=start_again).start()

            def start_again() -> None:
                again = GatewayProcess(root, flags, {})
                gateways.append(again)
                again.wait_until_listening()
                line.target = again.address

            line.cut_after = [20 * MIB]
            line.on_cut = kill
            with connect(line.address, patience=120) as client:
                got = client.checkpoints.download_archive(
                    path, tmp_path / "a.tar.gz", progress=told.append
                )
            assert line.received[-1] < 60 * MIB
    finally:
        codes = [gateway.stop() for gateway in gateways]
    assert codes == [-signal.SIGKILL, 0]
    assert got.verified
    # It was never begun anew.
    done = [each.done_bytes for each in told]
    assert done == sorted(done)
