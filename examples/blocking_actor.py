"""The actor of `actor.py` without an event loop.

python examples/blocking_actor.py grpc://localhost:9002 --until-step=100
"""

from __future__ import annotations

import argparse
import random

from policy import Environment, Policy

import modelreg.client.blocking as cogment


def act(endpoint: str, name: str, until_step: int) -> None:
    with cogment.Context(user_id="actor") as context:
        registry = context.get_model_registry_v2(cogment.Endpoint(endpoint))
        latest = registry.track_latest_model(name, Policy.from_bytes, initial_wait=30)
        environment, chance = Environment(), random.Random(0)
        while True:
            policy, info = latest.get()  # waits for the first one only
            action = policy.act(environment.observe(chance))
            print(f"iteration {info.iteration}: action {action:.4f}")
            if int(info.properties["step"]) >= until_step:
                return
            latest.wait_for_newer(info.iteration)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Act with the latest toy policy.")
    parser.add_argument("endpoint", nargs="?", default="grpc://localhost:9002")
    parser.add_argument("--model", default="toy-policy")
    parser.add_argument("--until-step", type=int, default=100)
    arguments = parser.parse_args()
    act(arguments.endpoint, arguments.model, arguments.until_step)
