from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from local_backend import BASE
from safetensors.torch import load_file

from tinkergate.ingress.http.signed_urls import SignedUrls
from tinkergate.v1 import SaveStateRequest

FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]


async def archive_url(house: Any, path: str) -> str:
    headers = {"Accept": "application/json"}
    response = await house.get(f"{house.route(path)}/archive", headers=headers)
    assert response.status_code == 200
    url: str = response.json()["url"]
    return url


async def test_the_first_clients_are_sent_on(house: Any) -> None:
    path = await house.save(await house.model(), "weights", "a")
    headers = {"Accept": "application/gzip"}
    response = await house.get(f"{house.route(path)}/archive", headers=headers)
    assert response.status_code == 302
    expires = parsedate_to_datetime(response.headers["expires"])
    assert 890 < (expires - datetime.now(UTC)).total_seconds() <= 900
    assert response.headers["location"].startswith(f"{house.url}/api/v1/signed/")


async def test_the_later_clients_read_the_link(house: Any) -> None:
    path = await house.save(await house.model(), "weights", "a")
    headers = {"Accept": "application/json"}
    told = (await house.get(f"{house.route(path)}/archive", headers=headers)).json()
    assert set(told) == {"url", "expires"}
    life = datetime.fromisoformat(told["expires"]) - datetime.now(UTC)
    assert 890 < life.total_seconds() <= 900


async def test_the_archive_is_the_folder(house: Any, tmp_path: Path) -> None:
    model = await house.model()
    url = await archive_url(house, await house.save(model, "weights", "a"))
    async with httpx.AsyncClient(trust_env=False) as stranger:
        response = await stranger.get(url)
        head = await stranger.head(url)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/gzip"
    assert int(response.headers["content-length"]) == len(response.content)
    name = f"{model.replace(':', '-')}-weights-a.tar.gz"
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert head.headers["content-length"] == response.headers["content-length"]
    assert head.headers["etag"] == response.headers["etag"]
    with tarfile.open(fileobj=io.BytesIO(response.content), mode="r:gz") as tar:
        assert tar.getnames() == [*FILES, "tinkergate.json", "checkpoint_complete"]
        tar.extractall(tmp_path / "taken", filter="data")
    stored = tmp_path / "0" / "checkpoints" / quote(model, safe="") / "weights" / "a"
    for file in [*FILES, "tinkergate.json"]:
        assert (tmp_path / "taken" / file).read_bytes() == (stored / file).read_bytes()
    weights = load_file(tmp_path / "taken" / "adapter_model.safetensors")
    assert any(weight.any() for key, weight in weights.items() if "lora_B" in key)


@pytest.mark.parametrize("first", [0, 1, 11, 700, 66_000])
async def test_a_download_goes_on_where_it_broke_off(house: Any, first: int) -> None:
    url = await archive_url(house, await house.save(await house.model(), "weights", "a"))
    async with httpx.AsyncClient(trust_env=False) as stranger:
        whole = await stranger.get(url)
        headers = {"Range": f"bytes={first}-", "If-Range": whole.headers["etag"]}
        rest = await stranger.get(url, headers=headers)
    size = len(whole.content)
    assert rest.status_code == 206
    assert rest.headers["content-range"] == f"bytes {first}-{size - 1}/{size}"
    assert rest.content == whole.content[first:]


async def test_another_archive_is_sent_whole(house: Any) -> None:
    """What was read of the first must not be glued to the rest of the second."""
    model = await house.model()
    url = await archive_url(house, await house.save(model, "weights", "a"))
    async with httpx.AsyncClient(trust_env=False) as stranger:
        etag = (await stranger.get(url)).headers["etag"]
        request = SaveStateRequest(model_id=model, name="a", overwrite=True)
        await house.wait(await house.gateway.training.submit(request))
        again = await stranger.get(url, headers={"Range": "bytes=10-", "If-Range": etag})
    assert again.status_code == 200
    assert again.headers["etag"] != etag
    assert again.content[:2] == b"\x1f\x8b"


async def test_each_file_has_a_link(house: Any) -> None:
    path = await house.save(await house.model(), "external_weights", "e")
    told = (await house.get(f"{house.route(path)}/external_weights_urls")).json()
    assert sorted(told["urls"]) == [*FILES[:2], "tinkergate.json"]
    assert datetime.fromisoformat(told["expires"]) > datetime.now(UTC)
    async with httpx.AsyncClient(trust_env=False) as stranger:
        for name, url in told["urls"].items():
            response = await stranger.get(url)
            assert response.status_code == 200, name
            digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
            assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
            assert response.headers["accept-ranges"] == "bytes"
    async with httpx.AsyncClient(trust_env=False) as stranger:
        config = (await stranger.get(told["urls"]["adapter_config.json"])).json()
    assert (config["peft_type"], config["r"]) == ("LORA", 4)
    assert config["base_model_name_or_path"] == BASE


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("0-9", 0, 10),
        ("100-100", 100, 101),
        ("5-", 5, None),
        ("-7", -7, None),
        ("0-999999", 0, None),
    ],
)
async def test_ranges_of_a_file(house: Any, asked: str, first: int, end: int | None) -> None:
    path = await house.save(await house.model(), "external_weights", "e")
    urls = (await house.get(f"{house.route(path)}/external_weights_urls")).json()["urls"]
    async with httpx.AsyncClient(trust_env=False) as stranger:
        url = urls["adapter_model.safetensors"]
        whole = (await stranger.get(url)).content
        part = await stranger.get(url, headers={"Range": f"bytes={asked}"})
        assert part.status_code == 206
        assert part.content == whole[first:end]
        start = first % len(whole)
        last = start + len(part.content) - 1
        assert part.headers["content-range"] == f"bytes {start}-{last}/{len(whole)}"


async def test_ranges_that_are_none(house: Any) -> None:
    path = await house.save(await house.model(), "external_weights", "e")
    urls = (await house.get(f"{house.route(path)}/external_weights_urls")).json()["urls"]
    async with httpx.AsyncClient(trust_env=False) as stranger:
        url = urls["adapter_config.json"]
        whole = await stranger.get(url)
        size = len(whole.content)
        for odd in ("bytes=0-1,3-4", "bytes=-", "bytes=5-2", "lines=1-2", "x"):
            response = await stranger.get(url, headers={"Range": odd})
            assert (response.status_code, response.content) == (200, whole.content)
        for beyond in (f"bytes={size}-", "bytes=999999-", "bytes=-0"):
            response = await stranger.get(url, headers={"Range": beyond})
            assert response.status_code == 416
            assert response.headers["content-range"] == f"bytes */{size}"
        same = await stranger.get(url, headers={"If-None-Match": whole.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")


async def test_links_that_are_not_good(house: Any) -> None:
    model = await house.model()
    url = await archive_url(house, await house.save(model, "weights", "a"))
    await house.save(model, "weights", "b")
    parts = urlsplit(url)
    expires = int(parts.query.split("expires=")[1].split("&")[0])
    bad = {
        "another checkpoint": url.replace("weights/a/", "weights/b/"),
        "another end": url.replace(f"expires={expires}", f"expires={expires + 9}"),
        "no signature": url.partition("?")[0],
        "half a signature": url[:-5],
        "odd": f"{parts.scheme}://{parts.netloc}{parts.path}?expires=x&signature=%00%ff",
        "of another secret": SignedUrls(bytes(32)).link(house.url, parts.path).url,
    }
    async with httpx.AsyncClient(headers=dict(house.client.headers), trust_env=False) as client:
        for what, link in bad.items():
            response = await client.get(link)
            assert response.status_code == 403, what
            assert "signature" in response.json()["detail"]
        assert (await client.get(url)).status_code == 200


def test_a_link_ends() -> None:
    now = 1000.0
    urls = SignedUrls(b"k" * 32, lifetime=60, now=lambda: now)
    link = urls.link("http://gate.example/x", "/signed/a:b/ü c")
    assert link.expires == datetime.fromtimestamp(1060, UTC)
    url = urlsplit(link.url)
    assert (url.netloc, url.path) == ("gate.example", "/x/signed/a:b/%C3%BC%20c")
    query = dict(pair.split("=") for pair in url.query.split("&"))
    urls.check("/signed/a:b/ü c", **query)
    now = 1059.9
    urls.check("/signed/a:b/ü c", **query)
    now = 1060.0
    with pytest.raises(Exception, match="has expired"):
        urls.check("/signed/a:b/ü c", **query)


async def test_links_begin_with_the_public_url(open_house: Any) -> None:
    house = await open_house(public_url="https://gate.example/tinker/")
    path = await house.save(await house.model(), "weights", "a")
    url = await archive_url(house, path)
    assert url.startswith("https://gate.example/tinker/api/v1/signed/")
    here = url.replace("https://gate.example", house.url)
    for link in (here, here.replace("/tinker/", "/")):
        assert (await house.client.get(link)).status_code == 200


async def test_mint_has_the_archive_alone(open_house: Any) -> None:
    house = await open_house(profile="mint")
    path = await house.save(await house.model(), "weights", "a")
    url = await archive_url(house, path)
    async with httpx.AsyncClient(trust_env=False) as stranger:
        assert (await stranger.get(url)).status_code == 200
    model, route = path.split("/")[2], house.route(path)
    for planned in (
        "training_runs",
        f"training_runs/{model}",
        f"training_runs/{model}/checkpoints",
        "checkpoints",
        "sessions",
        f"sessions/{model.split(':')[0]}",
        f"{route}/external_weights_urls",
    ):
        assert (await house.get(planned)).status_code == 404, planned
    for planned in ("weights_info", "copy_weights", "sessions/search", f"{route}/publish"):
        assert (await house.post(planned, {})).status_code == 404, planned
    assert (await house.client.delete(f"/api/v1/{route}")).status_code == 404
