"""A trainer: publishes the policy of every step, for actors to follow, and stores each that is the best so far.

python examples/trainer.py grpc://localhost:9002 --steps=100
"""

from __future__ import annotations

import argparse
import random

import anyio
from policy import Environment, Policy

import modelreg.client as cogment


async def train(endpoint: str, name: str, steps: int) -> None:
    async with cogment.Context(user_id="trainer") as context:
        registry = await context.get_model_registry_v2(cogment.Endpoint(endpoint))
        await registry.update_model_info(name, {"kind": "linear"})
        environment, chance = Environment(), random.Random(0)
        policy = Policy()
        best = environment.reward(policy)
        for step in range(1, steps + 1):
            candidate = policy.changed(chance)
            reward = environment.reward(candidate)
            properties = {"step": str(step), "reward": f"{reward:.4f}"}
            if reward > best:
                policy, best = candidate, reward
                info = await registry.store_model(name, policy.weights, properties)
                print(f"step {step}: stored iteration {info.iteration}, reward {reward:.4f}")
            else:
                await registry.publish_model(name, candidate.weights, properties)
        print(f"done: {steps} steps, best reward {best:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a toy policy.")
    parser.add_argument("endpoint", nargs="?", default="grpc://localhost:9002")
    parser.add_argument("--model", default="toy-policy")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    anyio.run(train, arguments.endpoint, arguments.model, arguments.steps, backend=arguments.backend)
