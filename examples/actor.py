"""An actor: acts with the latest policy there is, and takes the next one the moment it is published.

python examples/actor.py grpc://localhost:9002 --until-step=100
"""

from __future__ import annotations

import argparse
import random

import anyio
from policy import Environment, Policy

import modelreg.client as cogment


async def act(endpoint: str, name: str, until_step: int) -> None:
    async with cogment.Context(user_id="actor") as context:
        registry = await context.get_model_registry_v2(cogment.Endpoint(endpoint))
        latest = await registry.track_latest_model(name, Policy.from_bytes, initial_wait=30)
        environment, chance = Environment(), random.Random(0)
        while True:
            policy, info = await latest.get()  # waits for the first one only
            action = policy.act(environment.observe(chance))
            print(f"iteration {info.iteration}: action {action:.4f}")
            if int(info.properties["step"]) >= until_step:
                return
            await latest.wait_for_newer(info.iteration)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Act with the latest toy policy.")
    parser.add_argument("endpoint", nargs="?", default="grpc://localhost:9002")
    parser.add_argument("--model", default="toy-policy")
    parser.add_argument("--until-step", type=int, default=100)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    anyio.run(act, arguments.endpoint, arguments.model, arguments.until_step, backend=arguments.backend)
