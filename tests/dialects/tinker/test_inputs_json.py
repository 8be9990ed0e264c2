from __future__ import annotations

import numpy as np
import pytest

from tinkergate.dialects.tinker.inputs_json import (
    datum_from_json,
    datum_to_json,
    datums_from_json,
    model_input_from_json,
    model_input_to_json,
)
from tinkergate.dialects.tinker.json_text import read_json, write_json
from tinkergate.errors import GatewayError
from tinkergate.tensors import array_from_tensor, tensor_from_array, token_bytes
from tinkergate.v1 import (
    Chunk,
    Datum,
    DmelChunk,
    EncodedTextChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    ImageDimensions,
    ModelInput,
)

ALL_CHUNKS = ModelInput(
    chunks=[
        Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes([1, 2, 2**31 - 1]))),
        Chunk(image=ImageChunk(data=b"\x89PNG", format="png", expected_tokens=7)),
        Chunk(image=ImageChunk(data=b"\xff\xd8", format="jpeg")),
        Chunk(
            image_asset_pointer=ImageAssetPointerChunk(
                format="png", location="asset/1", expected_tokens=3
            )
        ),
        Chunk(dmel=DmelChunk(dmel=b"\x00\x01")),
    ]
)


def test_every_chunk_comes_back() -> None:
    told = read_json(write_json(model_input_to_json(ALL_CHUNKS)))

    assert [chunk["type"] for chunk in told["chunks"]] == [
        "encoded_text",
        "image",
        "image",
        "image_asset_pointer",
        "dmel",
    ]
    assert model_input_from_json(told, "prompt") == ALL_CHUNKS


def test_a_datum_comes_back() -> None:
    datum = Datum(model_input=ALL_CHUNKS.chunks[:1])
    datum.loss_fn_inputs["target_tokens"].CopyFrom(tensor_from_array(np.array([2, 3, 4])))
    datum.loss_fn_inputs["weights"].CopyFrom(
        tensor_from_array(np.array([0.1, -0.2, 1], dtype=np.float32))
    )

    assert datum_from_json(read_json(write_json(datum_to_json(datum))), "d") == datum


def test_plain_lists_are_taken_by_their_name() -> None:
    datum = datum_from_json(
        {
            "model_input": {"chunks": [{"tokens": [1, 2]}]},
            "loss_fn_inputs": {"target_tokens": [2, 3], "weights": [1, 0]},
        },
        "d",
    )

    assert array_from_tensor(datum.loss_fn_inputs["target_tokens"]).dtype == np.int64
    assert array_from_tensor(datum.loss_fn_inputs["weights"]).dtype == np.float32


def _datum(**fields: object) -> dict[str, object]:
    return {"model_input": {"chunks": []}, **fields}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "data[0].model_input: is not given"),
        (_datum(model_input=[]), "data[0].model_input: is a list of 0; must be an object"),
        (_datum(loss_fn_inputs={"mine": [1]}), "data[0].loss_fn_inputs.mine: is a list of 1"),
        (
            _datum(model_input={"chunks": [{"type": "video"}]}),
            "data[0].model_input.chunks[0].type: is 'video'; must be 'encoded_text', 'image'",
        ),
        (
            _datum(model_input={"chunks": [{"type": "encoded_text", "tokens": [1, 2**31]}]}),
            "data[0].model_input.chunks[0].tokens[1]: is 2147483648; must fit int32",
        ),
        (
            _datum(model_input={"chunks": [{"type": "image", "data": "no!", "format": "png"}]}),
            "data[0].model_input.chunks[0].data: is 'no!'; must be base64",
        ),
        (
            _datum(
                model_input={
                    "chunks": [
                        {"type": "image", "data": "", "format": "png", "expected_tokens": 1.5}
                    ]
                }
            ),
            "data[0].model_input.chunks[0].expected_tokens: is 1.5; must be an integer",
        ),
    ],
)
def test_what_is_no_datum_is_named(value: object, message: str) -> None:
    with pytest.raises(GatewayError) as caught:
        datums_from_json([value], "data")

    assert message in caught.value.message


def test_what_json_cannot_tell_is_refused() -> None:
    sized = ImageChunk(format="png", override_dimensions=ImageDimensions(width=1, height=1))

    with pytest.raises(GatewayError, match="override_dimensions"):
        model_input_to_json(ModelInput(chunks=[Chunk(image=sized)]))
    with pytest.raises(GatewayError, match="holds nothing"):
        model_input_to_json(ModelInput(chunks=[Chunk()]))
