"""The pipelines of the benchmark: a chain, a fan-out and a nested loop of the smallest possible Python steps."""

from kfp import dsl


@dsl.component(base_image="python:3.11")
def increment(number: int) -> int:
    return number + 1


def step(number):
    """A step that is executed in every run."""
    return increment(number=number).set_caching_options(False)


@dsl.pipeline
def chain():
    task = step(0)
    for _ in range(19):
        task = step(task.output)


@dsl.pipeline
def fan_out():
    with dsl.ParallelFor(list(range(100))) as number:
        step(number)


@dsl.pipeline
def nested_loop():
    with dsl.ParallelFor(list(range(5))):
        with dsl.ParallelFor(list(range(5))) as number:
            step(number)


@dsl.pipeline
def parallel_thousand():
    with dsl.ParallelFor(list(range(1000))) as number:
        step(number)


@dsl.pipeline
def parallel_ten_thousand():
    with dsl.ParallelFor(list(range(10_000))) as number:
        step(number)


# Each with its number of steps.
COMPARED = {"chain of 20": (chain, 20), "fan-out of 100": (fan_out, 100), "nested loop of 5 x 5": (nested_loop, 25)}
