"""What is saved by the Loops SDK goes on where it was, is listed, and is downloaded whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import loops_reference
from interop_sdk import Seen, one
from loops_reference import singles
from loops_sdk import LoopsSdk


def sums(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_saving(sdk: LoopsSdk, door: Any, saving_reference: loops_reference.Seen) -> None:
    seen = sdk.run("saving")
    same = {
        "fresh": ["fresh", "after reset"],
        "middle": ["middle", "loaded without"],
        "uninterrupted": ["uninterrupted", "resumed", "loaded with optimizer"],
        "anew": ["anew"],
        "smaller": ["after smaller", "at the end"],
    }
    for what, names in same.items():
        for name in names:
            expected = one(saving_reference, what)["logprobs"]
            assert singles(one(seen, name)["logprobs"]) == expected, name
    check_paths(seen)
    check_files(seen, door.process.data_dir)
    check_refusals(seen)


def check_paths(seen: Seen) -> None:
    saved = one(seen, "saved")
    run_id = saved["path"].removeprefix("bt://loops:").split("/")[0]
    assert saved["path"] == f"bt://loops:{run_id}/weights/middle"
    assert saved["sampler_path"] == f"bt://loops:{run_id}/sampler_weights/weights"
    assert saved["version"] == 2
    assert one(seen, "resumed version")["version"] == 4
    assert one(seen, "anew version")["version"] == 2
    assert one(seen, "loaded")["step"] == 2
    assert one(seen, "loaded anew")["step"] == 0
    assert one(seen, "again")["path"] == saved["path"]
    assert (one(seen, "reset")["step"], one(seen, "reset")["rank"]) == (0, 8)
    assert one(seen, "smaller")["rank"] == 4
    # The run is the same after it was reset.
    assert one(seen, "small")["path"] == f"bt://loops:{run_id}/weights/small"
    assert one(seen, "listed")["checkpoints"] == [
        ["small", "trainer", 4, run_id],
        ["middle", "trainer", 8, run_id],
        ["weights", "sampler", 8, run_id],
    ]


def check_files(seen: Seen, data_dir: Path) -> None:
    pages = one(seen, "pages")
    names = [name for page in pages["names"] for name in page]
    assert [len(page) for page in pages["names"]] == [2, len(names) - 2]
    assert pages["tokens"] == [2, None]
    assert pages["totals"] == [len(names)] * 2
    run_id = one(seen, "saved")["path"].removeprefix("bt://loops:").split("/")[0]
    model = data_dir / "checkpoints" / quote(run_id, safe="")
    by_id, by_name = (line for line in seen if line["what"] == "download")
    for told, folder in ((by_id, "weights/middle"), (by_name, "sampler_weights/weights")):
        assert told["sums"] == sums(model / folder)
        assert told["count"] == len(told["sums"])
    assert sorted(by_id["sums"]) == sorted(names)


def check_refusals(seen: Seen) -> None:
    told = one(seen, "unknown")
    assert (told["type"], "No Loops checkpoint found" in told["message"]) == ("ValueError", True)
    for name in ("load unknown", "not loaded"):
        assert one(seen, name)["type"] == "RemoteOpError"
    assert one(seen, "load unknown")["error_class"] == "CheckpointNotFoundError"
    assert "bt://loops:" in one(seen, "load unknown")["message"]
    for name, field in (("load elsewhere", "path"), ("bad name", "name")):
        told = one(seen, name)
        assert (told["type"], told["status"]) == ("HTTPStatusError", 422)
        assert f"{field}: is" in told["message"]
