"""Trains classifiers of handwritten digits in three ways, in parallel, registers the best if it is better than the champion, and deploys it
as a canary.

    kfp dsl compile --py digits.py --output digits.yaml
"""

from typing import List

from components import best, data_version, deploy, register, split, train
from kfp import dsl, kubernetes


@dsl.pipeline(name="digits")
def digits(
    repository: str,
    revision: str = "HEAD",
    kinds: List[str] = ["logreg", "svm", "forest"],
    held_out: float = 0.2,
    canary_percent: int = 10,
) -> str:
    # A branch moves, so the version is looked up in each run; what follows is cached by the content.
    data = data_version(repository=repository, path="digits.csv", revision=revision).set_caching_options(False)
    parts = split(data=data.outputs["data"], held_out=held_out)
    with dsl.ParallelFor(items=kinds) as kind:
        trained = train(kind=kind, train=parts.outputs["train"], test=parts.outputs["test"])
    chosen = best(models=dsl.Collected(trained.outputs["model"]))
    # The registry changes meanwhile, so neither step may be one of an earlier run.
    registered = register(name="digits", model=chosen.outputs["chosen"]).set_caching_options(False)
    with dsl.If(registered.output != ""):
        deployed = deploy(name="digits", alias=registered.output, canary_percent=canary_percent).set_caching_options(False)
        kubernetes.use_secret_as_env(deployed, "slipway", {"token": "SLIPWAY_TOKEN"})
    return chosen.outputs["Output"]
