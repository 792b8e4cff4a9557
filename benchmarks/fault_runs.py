"""Trains the runs that the benchmarks of diagnosis and advice judge: each fault in two amounts, and healthy ones.

Every run is real, made by the reference trainer on its tiny base, in a process forked from one that has loaded torch.
It is kept in ``.benchmarks/runs`` by what makes it (recipe, fault, sources of both, base), so that a pass that was cut
off goes on where it was, and judging anew costs no training. Two runs go at once, one thread each.

    python benchmarks/fault_runs.py --dev --only learning-rate-too-high     # seeds 0 to 2, to choose amounts with
    python benchmarks/fault_runs.py --dev --only nan-from-step:subtle --seeds 1
    python benchmarks/fault_runs.py --dev --healthy
    python benchmarks/fault_runs.py                                         # the reported pass

Seeds below 1000 are for development; those that are reported begin at 1000 and are used for nothing else.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import inspect
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("LORAWATCH_BENCHMARK_RUNS", ROOT / ".benchmarks" / "runs"))
REPORTED = (1000, 1001, 1002)
DEVELOPMENT = (0, 1, 2)
RENEWED = frozenset(
    {"accumulation-loss-scale", "unlearnable-replies", "resume-with-fresh-adapter", "resume-without-optimizer",
     "entropy-collapse"}
)  # fmt: skip
"""Faults whose rule, amount or advice was changed for what a first reported pass showed: 4 of 6 and 3 of 6 caught of
the first two, advice for the next two that did not help, or made the loss worse; 4 of 6 caught of the last one, whose
runs were made longer, so that the collapse is over before their end. What is reported of them comes from further seeds,
:data:`FURTHER` above the first ones, that were used for nothing before."""
FURTHER = 3
KEPT = (
    "lorawatch.jsonl", "trainer_state.json", "recipe.yaml", "console.log", "result.json",
    "adapter_config.json",
)  # fmt: skip
LOOKED_AT = frozenset(
    {"configuration", "adapter", "generations", "labels", "preference", "reinforcement", "alpha-absurd",
     "dropout-extreme", "rank-absurd"}
)  # fmt: skip
"""Faults, and modules of them, in whose runs the model is asked every 50 steps: of configuration, adapter, labels,
generations, preferences and rewards. Looks take time, and the other faults show themselves without them."""
LONGEST = 900.0
"""Seconds after which a run is ended and counted as failed."""

COMMON: dict[str, Any] = {
    "max_steps": 200, "logging_steps": 2, "per_device_train_batch_size": 4, "eval_rows": 32, "eval_steps": 0.1,
    "save_steps": 1_000_000, "sample_steps": 0, "train_rows": 800,
}  # fmt: skip
"""What the runs have in common; a fault may ask for something else."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to train.

    Attributes:
        name: Name of the fault, or of the healthy set-up.
        amount: ``plain`` or ``subtle``; empty for a healthy run.
        seed: Seed of the data, of their order and of the adapter.
        changes: Fields of the recipe that differ from :data:`COMMON`.
        applied: Adjustments already applied, for the benchmark of advice: fields changed after the fault's mistake.
        mended: The fault is taken out again: its cause was found.
    """

    name: str
    amount: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()
    applied: tuple[tuple[str, Any], ...] = ()
    mended: bool = False

    def __hash__(self) -> int:
        return hash(repr(self))  # a field of a recipe may be a list or a mapping

    @property
    def healthy(self) -> bool:
        """Whether no fault is injected."""
        return not self.amount

    def __str__(self) -> str:
        return f"{self.name}{':' + self.amount if self.amount else ''} seed {self.seed}"


@dataclass(slots=True)
class Done:
    """A run that was trained, or that failed.

    Attributes:
        job: What was asked.
        folder: Its folder in the cache.
        seconds: Wall time of its training process.
        error: Why it failed; empty when it did not. A run that a fault kills has not failed.
        details: What the process left in ``result.json``.
    """

    job: Job
    folder: Path
    seconds: float
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def recipe_for(job: Job) -> Any:
    """The recipe of a job, its fault's mistake in it, its adjustments applied."""
    from lorawatch.trainer.faults.catalogue import fault_of
    from lorawatch.trainer.recipe import changed, recipe_of

    given = COMMON | dict(job.changes) | {"seed": job.seed, "output_dir": str(CACHE / "none")}
    if str(given.get("model", "tiny")).startswith("tiny-"):
        from healthy_runs import model_folder

        given["model"] = model_folder(given["model"])
    if not job.healthy:
        given["inject"] = f"{job.name}:{job.amount}"
        given.setdefault("method", _method(job.name))
    if job.healthy or _is_looked_at(job.name):
        given["sample_steps"] = 50
    recipe = recipe_of(given, "benchmark")
    recipe = fault_of(recipe).misconfigure(recipe)
    if job.applied:
        recipe = changed(recipe, **dict(job.applied))
    return replace(recipe, inject=None) if job.mended else recipe


def _is_looked_at(name: str) -> bool:
    """Whether what the model says is looked at in the runs of a fault."""
    from lorawatch.trainer.faults.catalogue import faults

    return name in LOOKED_AT or faults()[name].__module__.rpartition(".")[2] in LOOKED_AT


def _method(name: str) -> str:
    from lorawatch.trainer.faults.catalogue import faults

    methods = faults()[name].methods
    return "sft" if "sft" in methods else min(methods)


def folder_for(job: Job) -> Path:
    """Where the run is kept: by everything that makes it what it is."""
    told = json.dumps([recipe_for(job).plain(), _sources()], sort_keys=True, default=str)
    if not job.healthy:
        told += _source_of(job.name)
    name = f"{job.name}{'-' + job.amount if job.amount else ''}-{job.seed}"
    return CACHE / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"


@functools.cache
def _source_of(name: str) -> str:
    """Source of a fault: its class, those that it is made of, and what its module gives it; not its neighbours."""
    from lorawatch.trainer.faults.catalogue import faults

    kind = faults()[name]
    own = {each.__name__ for each in kind.__mro__}
    module = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    kept = [node for node in module.body if not isinstance(node, ast.ClassDef) or node.name in own]
    return "\n".join(ast.unparse(node) for node in kept)


@functools.cache
def _sources() -> str:
    """Digest of what every run rests on."""
    trainer = ROOT / "lorawatch" / "trainer"
    digest = hashlib.sha256()
    for file in (trainer / "tiny_base" / "model.safetensors", trainer / "builtin_data.py", trainer / "world.py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _train(job: Job, folder: str) -> None:
    """Train one run here, in a process of its own, and leave ``result.json``."""
    import torch

    torch.set_num_threads(1)
    # As in a training script on Linux: workers of a data loader are forks, and do not import everything anew.
    multiprocessing.set_start_method("fork", force=True)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    console = (target / "console.log").open("wb")
    os.dup2(console.fileno(), 1)
    os.dup2(console.fileno(), 2)
    import warnings

    warnings.simplefilter("ignore")
    from held_out import answers

    from lorawatch.trainer.fine_tune import fine_tune
    from lorawatch.trainer.recipe import RecipeError

    began = time.monotonic()
    result: dict[str, Any] = {}
    try:
        outcome = fine_tune(replace(recipe_for(job), output_dir=folder), quiet=True)
        result["steps"] = outcome.steps
        if recipe_for(job).sample_steps:  # a finding that it forgot is then judged by them
            result["held_out"] = answers(outcome.trainer.model, outcome.trainer.processing_class)
    except RecipeError as error:
        result["error"] = str(error)
    except Exception as error:  # a fault may kill its run: what it logged is judged all the same
        import traceback

        traceback.print_exc()
        result["died"] = f"{type(error).__name__}: {error}"
    result["seconds"] = time.monotonic() - began
    result["recipe"] = recipe_for(job).plain()
    (target / "result.json").write_text(json.dumps(result, default=str), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # everything is written; an orderly end of torch takes seconds


def train(jobs: Iterable[Job], *, workers: int = 2, tell: bool = True) -> list[Done]:
    """Train what is not in the cache yet; returns all, in the order of the jobs.

    Runs that wait most of the time (a hang) go beside the others, since they take no processor. Runs that load the
    machine come last, one by one.
    """
    from lorawatch.trainer.faults.catalogue import faults

    wanted = list(jobs)
    done: dict[Job, Done] = {}
    missing: list[Job] = []
    for job in wanted:
        found = _kept(job)
        if found is None:
            missing.append(job)
        else:
            done[job] = found
    waiting = [job for job in missing if not job.healthy and faults()[job.name].waits]
    alone = [job for job in missing if not job.healthy and faults()[job.name].alone]
    working = [job for job in missing if job not in waiting and job not in alone]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark_preload"])
    began, count = time.monotonic(), 0
    with ThreadPoolExecutor(workers) as busy, ThreadPoolExecutor(6) as idle, ThreadPoolExecutor(1) as single:
        futures = [idle.submit(_one, context, job) for job in waiting]
        beside = [busy.submit(_one, context, job) for job in working]
        futures += beside + [single.submit(_after, beside, context, job) for job in alone]
        for future in as_completed(futures):
            made = future.result()
            done[made.job] = made
            count += 1
            if tell:
                passed = time.monotonic() - began
                print(
                    f"[{count}/{len(missing)} {passed:.0f} s] {made.job}: {made.seconds:.1f} s {made.error}",
                    file=sys.stderr,
                )
    return [done[job] for job in wanted]


def _kept(job: Job) -> Done | None:
    folder = folder_for(job)
    try:
        details = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Done(job, folder, float(details.get("seconds", 0.0)), details.get("error", ""), details)


def _after(others: Sequence[Future[Done]], context: Any, job: Job) -> Done:
    wait(others)
    return _one(context, job)


def _one(context: Any, job: Job) -> Done:
    target = folder_for(job)
    with tempfile.TemporaryDirectory(prefix="lorawatch-run-") as scratch:
        folder = Path(scratch) / "run"
        process = context.Process(target=_train, args=(job, str(folder)))
        began = time.monotonic()
        process.start()
        process.join(LONGEST)
        if process.is_alive():
            process.kill()
            process.join()
        seconds = time.monotonic() - began
        error = ""
        if not (folder / "result.json").is_file():
            folder.mkdir(exist_ok=True)
            told = {"died": f"exit code {process.exitcode}", "seconds": seconds, "recipe": recipe_for(job).plain()}
            (folder / "result.json").write_text(json.dumps(told, default=str), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in KEPT:
            with contextlib.suppress(OSError):
                shutil.copyfile(folder / name, target / name)
        details = json.loads((target / "result.json").read_text(encoding="utf-8"))
        error = str(details.get("error", ""))
    return Done(job, target, seconds, error, details)


def fault_jobs(seeds: Sequence[int], *, only: Sequence[str] = (), amounts: Sequence[str] = ("plain", "subtle")) -> list[Job]:  # fmt: skip  # noqa: E501
    """Each fault in each amount with each seed; ``only`` names faults, or ``fault:amount``."""
    from lorawatch.trainer.faults.catalogue import faults
    from lorawatch.trainer.machine_needs import unmet

    found = []
    for name, kind in faults().items():
        if unmet(kind):
            continue
        for amount in amounts:
            if only and name not in only and f"{name}:{amount}" not in only:
                continue
            further = FURTHER if name in RENEWED else 0
            found += [Job(name, amount, seed + further if seed in REPORTED else seed) for seed in seeds]
    return found


def findings_of(folder: Path) -> list[Any]:
    """What ``lorawatch check`` finds in a run's folder."""
    from lorawatch.registry import RuleSet
    from lorawatch.settings import Settings
    from lorawatch.watch import judge

    judged = judge([folder / "lorawatch.jsonl"], RuleSet(Settings()))
    return [finding for watch in judged.runs for engine in watch.engines for finding in engine.findings]


def words(findings: Iterable[Any]) -> str:
    """Findings in a line: the roots first, symptoms in brackets."""
    ordered = sorted(findings, key=lambda one: (not one.is_root, -one.severity, one.opened_step))
    said = [f"{one.rule} {one.severity.label}@{one.opened_step}" for one in ordered if one.is_root]
    folded = [f"{one.rule}@{one.opened_step}" for one in ordered if not one.is_root]
    return (", ".join(said) or "nothing") + (f" ({', '.join(folded)})" if folded else "")


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="with the seeds of development")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT[:AMOUNT]")
    parser.add_argument("--healthy", action="store_true", help="healthy runs, not faults")
    parser.add_argument("--seeds", type=int, help="this many seeds instead of three")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--curve", action="store_true", help="print each run's loss, eval_loss and grad_norm, thinned")
    options = parser.parse_args()
    seeds = (DEVELOPMENT if options.dev else REPORTED)[: options.seeds]
    if options.healthy:
        from healthy_runs import healthy_jobs

        jobs = healthy_jobs(reported=not options.dev)
        jobs = [job for job in jobs if not options.only or job.name in options.only]
    else:
        jobs = fault_jobs(seeds, only=options.only)
    for made in train(jobs, workers=options.workers):
        note = made.error or made.details.get("died", "")
        print(f"{made.job!s:<44}{made.seconds:6.1f} s  {words(findings_of(made.folder))}  {note}")
        if options.curve:
            _curve(made.folder)
    return 0


def _curve(folder: Path) -> None:
    """Print a run's metrics, a few rows of them."""
    rows = [
        row for line in (folder / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
        if (row := json.loads(line)).get("type") == "metrics"
    ]  # fmt: skip
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        points = [(row["step"], row["values"][name]) for row in rows if name in row.get("values", {})]
        kept = points[:: max(len(points) // 14, 1)]
        print(f"    {name:<14}" + " ".join(f"{step}:{float(value):.3g}" for step, value in kept))


if __name__ == "__main__":
    sys.exit(main())
