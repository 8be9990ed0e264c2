"""The official SDK's side of tests/bench/dialect.py. Runs in the SDK's own environment, reads "go"
from stdin and answers the seconds of one call, client to result."""

from __future__ import annotations

import json
import sys
import time

import tinker
from tinker import types


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    service = tinker.ServiceClient(base_url=setup["url"], api_key=setup["key"])
    model = service.create_lora_training_client(
        base_model=setup["base_model"], rank=setup["rank"], seed=setup["seed"]
    )
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row[:-1]),
            loss_fn_inputs={"target_tokens": row[1:], "weights": [1.0] * (len(row) - 1)},
        )
        for row in setup["rows"]
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() != "go":
            break
        begin, cpu = time.perf_counter(), time.process_time()
        result = model.forward_backward(data, "cross_entropy").result()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        loss = result.metrics["loss:sum"]
        print(json.dumps({"seconds": seconds, "cpu": cpu, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
