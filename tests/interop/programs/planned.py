"""What MinT has planned: each call's status, or null if it is served."""

from __future__ import annotations

import mint
from program import main, new_model, tell


def program() -> None:
    service = mint.ServiceClient()
    model = new_model(service)
    rest = service.create_rest_client()
    run = model.model_id
    calls = {
        "list_training_runs": rest.list_training_runs,
        "get_training_run": lambda: rest.get_training_run(run),
        "list_sessions": rest.list_sessions,
        "get_session": lambda: rest.get_session(run.split(":")[0]),
        "list_user_checkpoints": rest.list_user_checkpoints,
    }
    for method, call in calls.items():
        status = None
        try:
            call().result()
        except mint.APIStatusError as error:
            status = error.status_code
        tell("planned", method=method, status=status)


if __name__ == "__main__":
    main(program)
