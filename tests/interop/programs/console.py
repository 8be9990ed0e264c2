"""The rest client: runs, sessions, checkpoints, publishing, expiry, and the files of archives."""

from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import tinker
from interop_examples import supervised
from program import (
    ADAM,
    ARGUMENTS,
    BASE_MODEL,
    VERSION,
    data,
    failure,
    main,
    new_model,
    result,
    tell,
)


def describe(checkpoint: Any) -> dict[str, Any]:
    """A checkpoint as the tests compare it."""
    return {
        "id": checkpoint.checkpoint_id,
        "type": checkpoint.checkpoint_type,
        "path": checkpoint.tinker_path,
        "size": checkpoint.size_bytes,
        "public": checkpoint.public,
        "expires": checkpoint.expires_at is not None,
        "zone": checkpoint.time.tzinfo is not None,
    }


def files_of_archive(content: bytes) -> dict[str, str]:
    """The SHA-256 of each file of a .tar.gz."""
    digests = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive.getmembers():
            if (file := archive.extractfile(member)) is not None:
                digests[Path(member.name).name] = hashlib.sha256(file.read()).hexdigest()
    return digests


def download(url: str) -> bytes:
    """What a signed URL gives to one who has no key."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def program() -> None:
    service = tinker.ServiceClient(user_metadata={"purpose": "interop"})
    model = new_model(service, user_metadata={"note": "one"})
    model.forward_backward(data(supervised(3)), "cross_entropy").result()
    model.optim_step(ADAM).result()
    state = model.save_state("state").result().path
    weights = model.save_weights_for_sampler("weights", ttl_seconds=3600).result().path
    sampler = result(service.create_sampling_client(model_path=weights))
    sampler_id = sampler._sampling_session_id
    session_id = model.model_id.split(":")[0]
    rest = service.create_rest_client()
    tell("made", model_id=model.model_id, state=state, weights=weights, sampler_id=sampler_id)

    run = rest.get_training_run(model.model_id).result()
    tell(
        "run",
        id=run.training_run_id,
        base_model=run.base_model,
        expected=BASE_MODEL,
        is_lora=run.is_lora,
        lora_rank=run.lora_rank,
        corrupted=run.corrupted,
        metadata=run.user_metadata,
        last=[describe(run.last_checkpoint), describe(run.last_sampler_checkpoint)],
        by_path=rest.get_training_run_by_tinker_path(state).result().training_run_id,
    )
    page = rest.list_training_runs(limit=1).result()
    tell(
        "runs",
        ids=[entry.training_run_id for entry in page.training_runs],
        cursor=dict(page.cursor),
    )
    checkpoints = rest.list_checkpoints(model.model_id).result().checkpoints
    tell("checkpoints", entries=[describe(entry) for entry in checkpoints])
    of_user = rest.list_user_checkpoints(limit=100).result()
    tell("user checkpoints", paths=[entry.tinker_path for entry in of_user.checkpoints])
    session = rest.get_session(session_id).result()
    tell("session", runs=list(session.training_run_ids), samplers=list(session.sampler_ids))
    tell("sessions", found=session_id in rest.list_sessions(limit=100).result().sessions)
    answer = rest.get_sampler(sampler_id).result()
    tell("sampler", id=answer.sampler_id, base_model=answer.base_model, path=answer.model_path)

    def entry(path: str) -> dict[str, Any]:
        listed = rest.list_checkpoints(model.model_id).result().checkpoints
        return next(describe(one) for one in listed if one.tinker_path == path)

    rest.publish_checkpoint_from_tinker_path(state).result()
    tell("published", public=entry(state)["public"])
    rest.unpublish_checkpoint_from_tinker_path(state).result()
    tell("unpublished", public=entry(state)["public"])
    rest.set_checkpoint_ttl_from_tinker_path(state, 7200).result()
    tell("expiring", expires=entry(state)["expires"])
    rest.set_checkpoint_ttl_from_tinker_path(state, None).result()
    tell("kept", expires=entry(state)["expires"])
    tell_files(model, rest, state)
    rest.delete_checkpoint_from_tinker_path(state).result()
    left = [one.tinker_path for one in rest.list_checkpoints(model.model_id).result().checkpoints]
    tell("deleted", left=left)
    tell("deleted twice", failure=failure(lambda: rest.delete_checkpoint_from_tinker_path(state)))
    tell("no such run", failure=failure(lambda: rest.get_training_run("nobody:train:7")))


def tell_files(model: Any, rest: Any, state: str) -> None:
    """The files of a checkpoint, as each version gets at them."""
    if VERSION < (0, 38):
        answer = rest.get_checkpoint_archive_url_from_tinker_path(state).result()
        tell("archive", files=files_of_archive(download(answer.url)), expires=str(answer.expires))
        return
    if not ARGUMENTS["external"]:
        # This version asks for the files of external weights alone.
        tell("no external", failure=failure(lambda: model.save_weights_external("outside")))
        return
    path = model.save_weights_external("outside").result().path
    urls = rest.get_external_weights_urls(path).result()
    files = {name: hashlib.sha256(download(url)).hexdigest() for name, url in urls.urls.items()}
    tell("external", path=path, files=files, expires=str(urls.expires))
    copied = rest.copy_weights(state, "archive", ttl_seconds=7200).result()
    tell("copied", path=copied)
    rest.delete_checkpoint_from_tinker_path(path).result()


if __name__ == "__main__":
    main(program)
