"""The pipelines of the benchmark: a chain, a fan-out and a nested loop of the smallest possible Python steps."""

from kfp import dsl


@dsl.component(kfp_package_path="kfp", install_kfp_package=False)
def increment(number: int) -> int:
    return number + 1


@dsl.pipeline
def chain():
    task = increment(number=0)
    for _ in range(19):
        task = increment(number=task.output)


@dsl.pipeline
def fan_out():
    with dsl.ParallelFor(list(range(100))) as number:
        increment(number=number)


@dsl.pipeline
def nested_loop():
    with dsl.ParallelFor(list(range(5))):
        with dsl.ParallelFor(list(range(5))) as number:
            increment(number=number)


@dsl.pipeline
def parallel_thousand():
    with dsl.ParallelFor(list(range(1000))) as number:
        increment(number=number)


# Each with its number of steps.
COMPARED = {"chain of 20": (chain, 20), "fan-out of 100": (fan_out, 100), "nested loop of 5 x 5": (nested_loop, 25)}
