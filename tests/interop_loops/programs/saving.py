"""Save, load, resume in each way, reset, list and download."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from baseten.loops import ServiceClient
from interop_examples import RANK, supervised
from program import ADAM, SUMS, data, failure, main, new_client, tell, tell_output

EXAMPLES = data(supervised(4, seed=3))


def steps(client: Any, count: int = 2) -> None:
    for _ in range(count):
        client.forward_backward(EXAMPLES, "cross_entropy", SUMS)
        client.optim_step(ADAM)


def program() -> None:
    service = ServiceClient()
    client = new_client(service)
    fresh = client.forward(EXAMPLES).result()
    tell_output("fresh", fresh)
    steps(client)
    saved = client.save_state("middle").result()
    published = client.save_weights_for_sampler("weights").result()
    tell("saved", path=saved.path, sampler_path=published.path, version=published.version)
    tell_output("middle", client.forward(EXAMPLES).result())
    steps(client)
    tell_output("uninterrupted", client.forward(EXAMPLES).result())

    resumed = service.create_training_client_from_state_with_optimizer(saved.path)
    steps(resumed)
    tell_output("resumed", resumed.forward(EXAMPLES).result())
    tell("resumed version", version=resumed.save_weights_for_sampler("w").result().version)
    resumed.close()
    anew = service.create_training_client_from_state(saved.path)
    steps(anew)
    tell_output("anew", anew.forward(EXAMPLES).result())
    tell("anew version", version=anew.save_weights_for_sampler("w").result().version)
    anew.close()

    # Another run's checkpoint may be loaded, and one's own, both ways.
    tell("loaded", step=client.load_state_with_optimizer(saved.path).result().step)
    steps(client)
    tell_output("loaded with optimizer", client.forward(EXAMPLES).result())
    tell("loaded anew", step=client.load_state(saved.path).result().step)
    tell_output("loaded without", client.forward(EXAMPLES).result())
    # A name that is saved again is replaced.
    again = client.save_state("middle").result()
    tell("again", path=again.path)

    reset = client.init_trainer_server(RANK).result()
    tell("reset", step=reset.step, rank=reset.lora_rank)
    tell_output("after reset", client.forward(EXAMPLES).result())
    steps(client, 1)
    smaller = client.init_trainer_server(RANK // 2).result()
    tell("smaller", rank=smaller.lora_rank)
    tell_output("after smaller", client.forward(EXAMPLES).result())
    tell("not loaded", **failure(client.load_state(saved.path).result))
    kept = client.save_state("small", ttl_seconds=3600).result()
    tell("small", path=kept.path)

    files(service, client.run_id)
    unknown = f"bt://loops:{client.run_id}/weights/never-saved"
    tell("unknown", **failure(lambda: service.create_training_client_from_state(unknown)))
    tell("load unknown", **failure(client.load_state(unknown).result))
    tell("load elsewhere", **failure(lambda: client.load_state("s3://bucket/adapter")))
    tell("bad name", **failure(lambda: client.save_state("no/such name")))
    tell_output("at the end", client.forward(EXAMPLES).result())


def files(service: ServiceClient, run_id: str) -> None:
    """The list, a page of files, and downloads by id and by name."""
    listed = service.list_checkpoints(run_id)
    tell(
        "listed",
        checkpoints=[
            [each.checkpoint_id, each.target, each.lora_adapter_config.rank, each.run_id]
            for each in listed
        ],
    )
    middle = next(each for each in listed if each.checkpoint_id == "middle")
    first = service.get_checkpoint_archive_url(middle.id, page_size=2)
    rest = service.get_checkpoint_archive_url(
        middle.id, page_size=2, page_token=first.next_page_token or 0
    )
    pages = [first, rest]
    tell(
        "pages",
        names=[[file.relative_file_name for file in page.presigned_urls] for page in pages],
        totals=[page.total_count for page in pages],
        tokens=[page.next_page_token for page in pages],
    )
    for way in ({"checkpoint_id": middle.id}, {"name": "weights", "run_id": run_id}):
        with tempfile.TemporaryDirectory() as folder:
            into = Path(folder) / "checkpoint"
            done = service.download_checkpoint(**way, dest_dir=str(into))
            sums = {
                str(file.relative_to(into)): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in into.rglob("*")
                if file.is_file()
            }
            tell("download", count=done.file_count, bytes=done.bytes_written, sums=sums)


if __name__ == "__main__":
    main(program)
